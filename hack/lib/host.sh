# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# What a cluster changes on the machine, and how it undoes that: packages, a bridge and a route, kernel settings, cgroups,
# mounts.

# Debian's directory of CNI plugins, or the one that upstream's packages use.
cni_plugins() {
	local folder
	for folder in /usr/lib/cni /opt/cni/bin; do
		if [[ -x $folder/bridge && -x $folder/host-local && -x $folder/loopback ]]; then
			echo "$folder"
			return
		fi
	done
}

# busybox for images built FROM scratch. It has to be static; the one in Debian's package "busybox" is not.
static_busybox() {
	local file
	for file in /usr/bin/busybox /bin/busybox; do
		# ldd fails for a static program.
		if [[ -x $file ]] && ! ldd "$file" >/dev/null 2>&1; then
			echo "$file"
			return
		fi
	done
}

# The packages of the programs that are missing. It checks programs and not packages, because another package may provide
# them: Docker's containerd.io works too, and conflicts with Debian's containerd.
missing_packages() {
	local pair
	for pair in containerd:containerd ctr:containerd containerd-shim-runc-v2:containerd runc:runc iptables:iptables \
		conntrack:conntrack ip:iproute2 buildah:buildah mount:mount; do
		command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
	done
	[[ -n $(cni_plugins) ]] || echo containernetworking-plugins
	[[ -n $(static_busybox) ]] || echo busybox-static
}

install_packages() {
	local missing
	mapfile -t missing < <(missing_packages | sort -u)
	if ((${#missing[@]} == 0)); then return; fi
	command -v apt-get >/dev/null || die "packages for a node are missing, and there is no apt-get to install them: ${missing[*]}" \
		"install them, or use --control-plane-only, which does not need them"
	log "installing Debian packages: ${missing[*]}"
	# The package would also start its own containerd, which is not needed. install_debian does not start it.
	install_debian "${missing[@]}"
	mapfile -t missing < <(missing_packages | sort -u)
	((${#missing[@]} == 0)) || die "the packages were installed, but programs of these are still missing: ${missing[*]}"
}

# A machine that cannot run a node is an error with a reason. The script never falls back to a smaller cluster.
check_node_host() {
	[[ $(uname -s) == Linux ]] || die "a node needs Linux; this is $(uname -s)"
	((EUID == 0)) || die "a node needs root (containers, a bridge, iptables)" \
		"run as root, or use --control-plane-only, which needs neither root nor packages"
	[[ -n $(cgroup_roots) ]] || die "a node needs cgroups, and none are mounted under /sys/fs/cgroup"
	[[ -e /dev/kmsg ]] || die "a node needs /dev/kmsg (the kubelet watches it for out-of-memory kills), and this container does not have it"
	# The path of a Unix socket has at most 107 characters, and the kubelet's longest one below $state takes about 45.
	((${#state} <= 60)) || die "the path PRISTINE_STATE is too long for the sockets below it: $state"
}

# --- network: one bridge for each cluster, with a non-loopback address, as Endpoints require ---

# The link's alias is the state directory of its cluster. Only that cluster may use and remove it.
link_alias() { cat "/sys/class/net/$bridge/ifalias" 2>/dev/null; }

make_bridge() {
	local network
	if [[ -e /sys/class/net/$bridge ]]; then
		[[ $(link_alias) == "$state" ]] || die "the network link $bridge exists and belongs to another cluster or program"
	else
		local other
		for network in "${host_networks[@]}"; do
			other=$(ip -o addr show to "$network")
			[[ -z $other ]] || die "the cluster's address range is in use on this machine: $other"
		done
		if ! ip link add "$bridge" type bridge; then
			[[ $mode == control-plane ]] || die "cannot create a network bridge (this needs CAP_NET_ADMIN and the kernel's bridge module)"
			return 1
		fi
		# Otherwise the bridge has the lowest MAC address of the pods' links, and when that pod is gone, the others send to an
		# address that no link has, until they look it up again.
		ip link set "$bridge" address "$(printf '02:70:72:69:73:%02x' "$index")" || die "cannot set the MAC address of the bridge $bridge"
		ip link set "$bridge" alias "$state" || die "cannot set the alias of the bridge $bridge"
	fi
	# Explicit checks: set -e has no effect in a function that is called in a condition.
	for network in "${host_networks[@]}"; do
		# No other host has the address, so do not wait for the detection of duplicates (IPv6).
		ip addr replace "$network" dev "$bridge" $([[ $network == *:* ]] && echo nodad) || die "cannot set the address $network of $bridge"
	done
	ip link set "$bridge" up || die "cannot set $bridge up"
}

# Without these routes, a call to a ClusterIP that has no endpoint (not yet, or not any more) would leave the machine through
# the default route, and another machine might answer it.
route_services() {
	if [[ $mode == node ]]; then
		# kube-proxy rewrites the ClusterIPs that it knows; packets to others are lost on the bridge. This also works without
		# a default route.
		local n
		for n in "${!service_cidrs[@]}"; do
			ip route replace "${service_cidrs[n]}" dev "$bridge" src "${host_networks[n]%/*}"
		done
	else
		# Without kube-proxy, every call fails at once. The high metric lets any other route take precedence.
		ip route replace blackhole "$service_cidr" metric 4000
	fi
}

remove_network() {
	((EUID == 0)) && command -v ip >/dev/null || return 0
	ip route del blackhole "$service_cidr" metric 4000 2>/dev/null || true
	if [[ $(link_alias) != "$state" ]]; then return; fi
	local link
	# The host ends of the pods' links, because another process may still hold the pods' network namespaces.
	for link in $(ip -o link show master "$bridge" | sed -nE 's/^[0-9]+: ([^:@]+).*/\1/p'); do
		ip link del "$link" 2>/dev/null || true
	done
	ip link del "$bridge"
}

# --- kernel settings that the kubelet, kube-proxy or this script changes, restored by 'down' ---

settings=(net/ipv4/ip_forward net/ipv4/conf/all/route_localnet net/bridge/bridge-nf-call-iptables
	net/ipv6/conf/all/forwarding net/bridge/bridge-nf-call-ip6tables
	vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
	kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

save_settings() {
	local setting
	if [[ -f $state/settings ]]; then return; fi
	for setting in "${settings[@]}"; do
		if [[ -r /proc/sys/$setting ]]; then echo "$setting $(<"/proc/sys/$setting")"; fi
	done >"$state/settings.new"
	mv "$state/settings.new" "$state/settings"
}

restore_settings() {
	local setting value
	if [[ ! -f $state/settings ]]; then return; fi
	while read -r setting value; do
		if [[ -r /proc/sys/$setting && $(<"/proc/sys/$setting") != "$value" ]]; then
			{ echo "$value" >"/proc/sys/$setting"; } 2>/dev/null || log "could not restore $setting to $value"
		fi
	done <"$state/settings"
}

# --- cgroups: all pods are below one cgroup of this cluster, so 'down' finds their processes without containerd ---

cgroup=pristine-$name

cgroup_roots() {
	# Either version 2, or one hierarchy for each controller of version 1 (and "unified" in hybrid mode).
	awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts
}

make_cgroups() {
	local root controllers
	while read -r root; do
		mkdir -p "$root/$cgroup" 2>/dev/null || die "cannot create cgroups below $root: it is read-only"
		# Version 2 passes controllers to children only if they are enabled, and the kubelet rejects a root without them.
		if [[ -f $root/cgroup.subtree_control ]]; then
			for controllers in $(<"$root/cgroup.controllers"); do
				{ echo "+$controllers" >"$root/cgroup.subtree_control"; } 2>/dev/null || true
			done
		fi
		# A new cpuset of version 1 has no CPUs, so no process can run in it.
		for controllers in cpuset.cpus cpuset.mems; do
			if [[ -f $root/$controllers && -z $(<"$root/$cgroup/$controllers") ]]; then cat "$root/$controllers" >"$root/$cgroup/$controllers"; fi
		done
	done < <(cgroup_roots)
}

kill_cgroups() {
	local root pid
	while read -r root; do
		while read -r pid; do
			kill -KILL "$pid" 2>/dev/null || true
		done < <(find "$root/$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null)
	done < <(cgroup_roots)
}

remove_cgroups() {
	local root remain end=$((SECONDS + 10))
	# Killed processes take a moment to exit, and a cgroup with a process cannot be removed.
	while ((SECONDS < end)); do
		remain=0
		while read -r root; do
			if [[ -d $root/$cgroup ]]; then find "$root/$cgroup" -depth -type d -delete 2>/dev/null || remain=1; fi
		done < <(cgroup_roots)
		if ((!remain)); then return; fi
		sleep 0.1
		kill_cgroups
	done
	log "some cgroups named $cgroup could not be removed"
}

# --- mounts ---

mounts() { awk -v prefix="$state/" 'index($2, prefix) == 1 { print $2 }' /proc/mounts; }

unmount_all() {
	local point
	# Later mounts first. If another process uses a mount, unmount it lazily: its path disappears at once.
	while read -r point; do
		printf -v point '%b' "$point" # /proc/mounts writes a space as \040
		umount "$point" 2>/dev/null || umount --lazy "$point" 2>/dev/null || true
	done < <(mounts | tac)
	[[ -z $(mounts) ]] || die "still mounted below $state:" "$(mounts)"
}
