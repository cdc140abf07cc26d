# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# What a cluster takes from the machine, and how it gives it back: packages, a bridge and a route, kernel settings,
# cgroups, mounts.

# Debian's folder of CNI plugins, and the one that upstream's packages use.
cni_plugins() {
	local folder
	for folder in /usr/lib/cni /opt/cni/bin; do
		if [[ -x $folder/bridge && -x $folder/host-local && -x $folder/loopback ]]; then
			echo "$folder"
			return
		fi
	done
}

# busybox for images made FROM scratch: it has to be static, which Debian's plain "busybox" package is not.
static_busybox() {
	local file
	for file in /usr/bin/busybox /bin/busybox; do
		# ldd fails for a program that is not dynamic.
		if [[ -x $file ]] && ! ldd "$file" >/dev/null 2>&1; then
			echo "$file"
			return
		fi
	done
}

# The packages behind the programs that are not there. By program and not by package: a machine may have them from
# elsewhere (Docker's containerd.io conflicts with Debian's containerd, and does as well).
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
	command -v apt-get >/dev/null || die "a node needs these, and there is no apt-get to install them with: ${missing[*]}" \
		"install them, or use --control-plane-only, which does without them"
	log "installing Debian packages: ${missing[*]}"
	# The package would start a containerd of its own, which nobody needs: install_debian starts none.
	install_debian "${missing[@]}"
	mapfile -t missing < <(missing_packages | sort -u)
	((${#missing[@]} == 0)) || die "installed, but the programs are still not there: ${missing[*]}"
}

# A machine that cannot run a node is an error with its reason, never a smaller cluster.
check_node_host() {
	[[ $(uname -s) == Linux ]] || die "a node needs Linux; this is $(uname -s)"
	((EUID == 0)) || die "a node needs root (containers, a bridge, iptables)" \
		"run as root, or use --control-plane-only, which needs neither root nor packages"
	[[ -n $(cgroup_roots) ]] || die "a node needs cgroups under /sys/fs/cgroup; none are mounted there"
	[[ -e /dev/kmsg ]] || die "a node needs /dev/kmsg (the kubelet watches it for out-of-memory kills); this container hides it"
	# A Unix socket's path has at most 107 characters; the kubelet's longest under here takes about 45.
	((${#state} <= 60)) || die "PRISTINE_STATE is too long for the sockets under it: $state"
}

# --- network: one bridge for each cluster, with a non-loopback address that Endpoints may hold ---

# The link's alias is its owner's state folder: that alone may use and remove it.
link_alias() { cat "/sys/class/net/$bridge/ifalias" 2>/dev/null; }

make_bridge() {
	if [[ -e /sys/class/net/$bridge ]]; then
		[[ $(link_alias) == "$state" ]] || die "there is a network link $bridge which is not this cluster's"
	else
		local other
		other=$(ip -o -4 addr show to "${host_address%.*}.0/$prefix")
		[[ -z $other ]] || die "the cluster's address range is in use on this machine: $other"
		if ! ip link add "$bridge" type bridge; then
			[[ $mode == control-plane ]] || die "cannot make a network bridge here (CAP_NET_ADMIN and the kernel's bridge module are needed)"
			return 1
		fi
		ip link set "$bridge" alias "$state" || die "cannot mark the bridge $bridge as ours"
	fi
	# (Explicitly: set -e does not reach into a function whose result is asked for.)
	ip addr replace "$host_address/$prefix" dev "$bridge" || die "cannot give $bridge its address"
	ip link set "$bridge" up || die "cannot set $bridge up"
}

# Without one of these routes a call to a ClusterIP that nothing answers (not yet, or not any more) leaves the machine
# by the default route, and a stranger may answer it.
route_services() {
	if [[ $mode == node ]]; then
		# kube-proxy rewrites what it knows; the rest dies on the bridge. Works without a default route, too.
		ip route replace "$service_cidr" dev "$bridge" src "$host_address"
	else
		# No kube-proxy: fails at once. The metric lets a more wanted route win.
		ip route replace blackhole "$service_cidr" metric 4000
	fi
}

remove_network() {
	((EUID == 0)) && command -v ip >/dev/null || return 0
	ip route del blackhole "$service_cidr" metric 4000 2>/dev/null || true
	if [[ $(link_alias) != "$state" ]]; then return; fi
	local link
	# Host ends of the pods' links, whose network namespaces may be pinned by something still.
	for link in $(ip -o link show master "$bridge" | sed -nE 's/^[0-9]+: ([^:@]+).*/\1/p'); do
		ip link del "$link" 2>/dev/null || true
	done
	ip link del "$bridge"
}

# --- kernel settings that the kubelet, kube-proxy or we change, put back as they were ---

settings=(net/ipv4/ip_forward net/ipv4/conf/all/route_localnet net/bridge/bridge-nf-call-iptables
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
			{ echo "$value" >"/proc/sys/$setting"; } 2>/dev/null || log "could not put $setting back to $value"
		fi
	done <"$state/settings"
}

# --- cgroups: all pods are below one cgroup of this cluster, which tells what is ours without any process's help ---

cgroup=pristine-$name

cgroup_roots() {
	# Version 2 alone, or one hierarchy for each controller of version 1 (and the hybrid's "unified").
	awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts
}

make_cgroups() {
	local root controllers
	while read -r root; do
		mkdir -p "$root/$cgroup" 2>/dev/null || die "cannot make cgroups below $root: it is read-only"
		# Version 2 hands controllers down only when told; the kubelet refuses a root without them.
		if [[ -f $root/cgroup.subtree_control ]]; then
			for controllers in $(<"$root/cgroup.controllers"); do
				{ echo "+$controllers" >"$root/cgroup.subtree_control"; } 2>/dev/null || true
			done
		fi
		# A new cpuset of version 1 allows no CPU at all, so that nothing may run in it.
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
	# The killed take a moment to go, and a cgroup with a process in it stays.
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
	# Later mounts first. Lazily where something that is not ours looks in: the name goes away at once.
	while read -r point; do
		printf -v point '%b' "$point" # /proc/mounts writes a space as \040
		umount "$point" 2>/dev/null || umount --lazy "$point" 2>/dev/null || true
	done < <(mounts | tac)
	[[ -z $(mounts) ]] || die "still mounted below $state:" "$(mounts)"
}
