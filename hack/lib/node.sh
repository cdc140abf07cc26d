# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# The other parts of a full cluster: controller manager, scheduler, containerd, kubelet, kube-proxy; and their removal.

write_containerd_config() {
	local snapshotter=overlayfs
	# The kernel rejects overlay on overlay (in a container), so make plain copies there.
	if [[ $(stat --file-system --format %T "$state") == overlayfs ]]; then snapshotter=native; fi
	cat >"$state/containerd.toml" <<-END
		version = 2
		root = "$state/containerd/root"
		state = "$state/containerd/run"
		disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing"]
		[grpc]
		address = "$state/containerd/containerd.sock"
		[plugins."io.containerd.internal.v1.opt"]
		path = "$state/containerd/opt"
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = "$pause_image"
		# Lowering a process's oom_score_adj needs CAP_SYS_RESOURCE. Without that capability, every pod would fail with
		# "can't get final child's PID from pipe: EOF".
		restrict_oom_score_adj = true
		# So that 'down' finds and unmounts the network namespaces.
		netns_mounts_under_state_dir = true
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "$(cni_plugins)"
		conf_dir = "$state/cni"
		[plugins."io.containerd.grpc.v1.cri".containerd]
		snapshotter = "$snapshotter"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		SystemdCgroup = false
		Root = "$state/containerd/runc"
	END
	mkdir -p "$state/cni"
	local range ranges=() routes=()
	for range in "${pod_ranges[@]}"; do
		ranges+=("[{\"subnet\": \"${range% *}\", \"rangeStart\": \"${range#* }\"}]")
		routes+=("{\"dst\": \"$([[ $range == *:* ]] && echo ::/0 || echo 0.0.0.0/0)\"}")
	done
	# hairpinMode: a pod can reach itself through its own Service. No ipMasq: pods reach the machine and each other, and no
	# other network. The host has the first address of each range, which is the default gateway.
	cat >"$state/cni/10-pristine.conflist" <<-END
		{"cniVersion": "1.0.0", "name": "pristine-$name", "plugins": [{
		  "type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
		  "ipam": {"type": "host-local", "dataDir": "$state/cni/addresses", "routes": [$(join "${routes[@]}")],
		           "ranges": [$(join "${ranges[@]}")]}}]}
	END
}

write_kubelet_config() {
	: >"$state/resolv.conf"
	mkdir -p "$state/static-pods"
	# Only kubelets since 1.31 can refuse cgroup v1.
	local cgroup_v1='failCgroupV1: false'
	if ((kubernetes_minor < 31)); then cgroup_v1=''; fi
	cat >"$state/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: "$host_address"
		healthzPort: 0
		authentication:
		  anonymous: {enabled: false}
		  webhook: {enabled: true}
		  x509: {clientCAFile: $state/pki/ca.crt}
		authorization: {mode: Webhook}
		containerRuntimeEndpoint: unix://$state/containerd/containerd.sock
		podLogsDir: $state/pods
		volumePluginDir: $state/volume-plugins
		staticPodPath: $state/static-pods
		rotateCertificates: false
		# No DNS in this cluster. No server listens at this address, so look-ups fail at once. Without an address, each pod
		# would get a warning Event and the machine's own name server. The empty file is for dnsPolicy Default.
		clusterDNS: ["$host_address"]
		clusterDomain: cluster.local
		resolvConf: $state/resolv.conf
		cgroupDriver: cgroupfs  # works without systemd
		cgroupRoot: /$cgroup
		$cgroup_v1
		enforceNodeAllocatable: []
		failSwapOn: false
		makeIPTablesUtilChains: false
		maxOpenFiles: 20000  # the default, a million, needs CAP_SYS_RESOURCE
		# A CI machine's disk may be nearly full. The kubelet should react only once it is full.
		evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
		imageGCHighThresholdPercent: 100  # no garbage collection: the images are in no registry
		# Pods see a changed Secret or ConfigMap within 10 s instead of 60.
		syncFrequency: 10s
	END
}

# Not the machine's other addresses.
node_port_addresses() {
	local network hosts=()
	for network in "${host_networks[@]}"; do hosts+=("${network%/*}/$([[ $network == *:* ]] && echo 128 || echo 32)"); done
	join "${hosts[@]}"
}

write_proxy_config() {
	cat >"$state/kube-proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		clientConnection: {kubeconfig: $state/kube-proxy.conf}
		mode: iptables
		hostnameOverride: $name
		clusterCIDR: "$(join "${pod_ranges[@]% *}")"
		healthzBindAddress: 127.0.0.1:10256
		metricsBindAddress: 127.0.0.1:10249
		nodePortAddresses: [$(node_port_addresses)]
		# Zero leaves the machine's connection tracking unchanged. Its settings may not be writable.
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
		iptables: {localhostNodePorts: false}
	END
}

# The programs that change the packet filters of the cluster's addresses; those of the Services' first addresses come first.
iptables_of_family() {
	if [[ $ip_family != ipv6 ]]; then echo iptables; fi
	if [[ $ip_family != ipv4 ]]; then echo ip6tables; fi
}

allow_pods_to_talk() {
	# Packets between pods pass the bridge. kube-proxy can redirect them only if iptables sees them there.
	modprobe br_netfilter 2>/dev/null || true
	[[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] || die "the kernel module br_netfilter is missing: pods could not reach Services"
	save_settings # after the module has added its settings, and before they are changed
	echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
	echo 1 >/proc/sys/net/ipv4/ip_forward
	if [[ $ip_family != ipv4 ]]; then
		[[ -e /proc/sys/net/ipv6 ]] || die "IPv6 is off on this machine: --ip-family $ip_family cannot work"
		echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
		echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
	fi
	local iptables
	for iptables in $(iptables_of_family); do
		# Docker's FORWARD chain drops packets that it does not know.
		"$iptables" --wait -C FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null ||
			"$iptables" --wait -I FORWARD -i "$bridge" -o "$bridge" -j ACCEPT || die "$iptables does not work on this machine"
	done
}

start_containerd() {
	mkdir -p "$state/containerd"
	if ! alive containerd; then write_containerd_config; fi
	start containerd "$(command -v containerd)" --config "$state/containerd.toml" --log-level warn
}

start_node() {
	# No leader election, which would wait 15 s for the lease of the previous process; and no port on 0.0.0.0.
	# Each controller first fetches its own ServiceAccount. With the default of 20 requests a second this would take 5 s.
	start kube-controller-manager "$bin/kube-controller-manager" \
		--kubeconfig="$state/controller-manager.conf" --use-service-account-credentials --leader-elect=false --secure-port=0 \
		--service-cluster-ip-range="$service_cidr" --root-ca-file="$state/pki/ca.crt" \
		--service-account-private-key-file="$state/pki/sa.key" \
		--cluster-signing-cert-file="$state/pki/ca.crt" --cluster-signing-key-file="$state/pki/ca.key" \
		--kube-api-qps=200 --kube-api-burst=400 \
		--flex-volume-plugin-dir="$state/volume-plugins" --profiling=false
	start kube-scheduler "$bin/kube-scheduler" \
		--kubeconfig="$state/scheduler.conf" --leader-elect=false --secure-port=0 --profiling=false
	if ! alive kubelet; then write_kubelet_config; fi
	# The directory for device plugins is fixed: --root-dir does not change it.
	if [[ ! -e /var/lib/kubelet ]]; then touch "$state/made-var-lib-kubelet"; fi
	start kubelet "$bin/kubelet" \
		--config="$state/kubelet.yaml" --kubeconfig="$state/kubelet.conf" --root-dir="$state/kubelet" \
		--cert-dir="$state/kubelet/pki" --hostname-override="$name" --node-ip="$(join "${host_networks[@]%/*}")"
	# Only if kube-proxy does not run: it exits when its configuration file is written, even with the same content.
	if ! alive kube-proxy; then write_proxy_config; fi
	start kube-proxy "$bin/kube-proxy" --config="$state/kube-proxy.yaml"
}

node_status() { kubectl_ get --raw "/api/v1/nodes/$name" --request-timeout 5s; }

# Whether the node is Ready since the kubelet's latest start. Right after a restart, the API still has the old status.
node_ready() {
	local status heartbeat
	status=$(node_status) || return 1
	[[ $status =~ \"type\":\"Ready\",\"status\":\"True\",\"lastHeartbeatTime\":\"([^\"]+)\" ]] || return 1
	heartbeat=$(date -d "${BASH_REMATCH[1]}" +%s)
	((heartbeat >= $(stat -c %Y "$state/run/kubelet.pid")))
}

# Pods that name no other ServiceAccount are rejected until the controller manager has created this one.
default_account() { kubectl_ get --raw /api/v1/namespaces/default/serviceaccounts/default; }

# The Service "kubernetes" has an address of the first family only.
services_routed() {
	local iptables
	read -r iptables < <(iptables_of_family)
	[[ $("$iptables" --wait -t nat -S KUBE-SERVICES) == *default/kubernetes:https* ]]
}

node_up() {
	start_containerd
	wait_for containerd 30 "containerd answers" ctr_ version
	import_images
	first_server_ready
	start_node
}

wait_for_node() {
	wait_for kubelet 60 "the node is Ready" node_ready
	log "the node is Ready"
	wait_for kube-controller-manager 30 "the default ServiceAccount exists" default_account
	wait_for kube-proxy 30 "kube-proxy has created its rules" services_routed
}

# The pids of the shims that containerd started for pods. They have no parent to ask, but this cluster's socket is in their
# arguments.
shims() {
	local folder arguments
	for folder in /proc/[0-9]*; do
		{ mapfile -d '' -t arguments <"$folder/cmdline"; } 2>/dev/null || continue
		if [[ ${arguments[0]-} == *containerd-shim* && " ${arguments[*]} " == *" -address $state/containerd/containerd.sock "* ]]; then
			echo "${folder#/proc/}"
		fi
	done
}

remove_pods() {
	local pid file sandbox sockets=()
	# containerd keeps the shims' sockets outside its own directories, and a killed shim leaves its socket there.
	for file in "$state"/containerd/run/io.containerd.runtime.v2.task/k8s.io/*/address; do
		if [[ -f $file ]]; then sockets+=("$(<"$file")"); fi
	done
	# Not task by task through containerd: a hundred pods would take half a minute. Kill the processes by their cgroups, then
	# the shims. Mounts and cgroups are removed next, and the rest is files below the state directory.
	stop 10 containerd
	kill_cgroups
	for pid in $(shims); do kill -KILL "$pid" 2>/dev/null || true; done
	rm -f "${sockets[@]#unix://}"
	remove_cgroups
	if [[ -d /var/log/containers ]]; then find /var/log/containers -lname "$state/*" -delete; fi
	if [[ -e $state/made-var-lib-kubelet ]]; then rm -rf --one-file-system /var/lib/kubelet; fi
	# The CNI library's records of each pod are outside the state directory: for this network, and for the pod's loopback.
	for file in "/var/lib/cni/results/pristine-$name-"*-eth0; do
		sandbox=${file##*"/pristine-$name-"}
		rm -f "$file" "/var/lib/cni/results/cni-loopback-${sandbox%-eth0}-lo"
	done
	rmdir /run/containerd/{s,} /var/lib/cni/{results,} 2>/dev/null || true
}

remove_proxy_rules() {
	command -v iptables >/dev/null || return 0
	local program
	for program in $(iptables_of_family); do "$program" --wait -D FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null || true; done
	local command table rules
	# 'kube-proxy --cleanup' leaves some of its chains behind. Empty them, delete the jumps to them, delete them: each table in
	# one step, so that concurrent changes of other programs are kept.
	for command in iptables ip6tables; do
		for table in filter nat mangle; do
			rules=$("$command-save" --table "$table" 2>/dev/null | awk -v table="$table" '
				BEGIN { print "*" table }
				/^:KUBE-/ { print $1 " - [0:0]"; drops = drops "-X " substr($1, 2) "\n" }
				/^-A / && $2 !~ /^KUBE-/ && /-j KUBE-/ { sub(/^-A/, "-D"); print }
				END { print drops "COMMIT" }') || continue
			if [[ $rules == *KUBE-* ]]; then
				"$command-restore" --noflush --wait <<<"$rules" || log "could not remove the KUBE- chains of $command's table $table"
			fi
		done
	done
}

node_down() {
	stop 10 kubelet kube-proxy kube-scheduler kube-controller-manager
	remove_pods
	remove_proxy_rules
}
