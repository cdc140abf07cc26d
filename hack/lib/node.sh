# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# The rest of a full cluster: controllers, scheduler, containerd, kubelet, kube-proxy; and how to take them away.

pod_cidr=10.88.0.0/16

write_containerd_config() {
	local snapshotter=overlayfs
	# Overlay on overlay (in a container) is refused by the kernel: plain copies instead.
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
		# Lowering a process's oom_score_adj takes CAP_SYS_RESOURCE. Without that capability every pod would fail with
		# "can't get final child's PID from pipe: EOF".
		restrict_oom_score_adj = true
		# Where 'down' finds and unmounts the network namespaces.
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
	# hairpinMode: a pod may be sent to itself by its own Service. No ipMasq: pods reach the machine and each other, and
	# nothing outside. The first addresses are left to the host.
	cat >"$state/cni/10-pristine.conflist" <<-END
		{"cniVersion": "1.0.0", "name": "pristine-$name", "plugins": [{
		  "type": "bridge", "bridge": "$bridge", "isGateway": true, "hairpinMode": true,
		  "ipam": {"type": "host-local", "dataDir": "$state/cni/addresses", "routes": [{"dst": "0.0.0.0/0"}],
		           "ranges": [[{"subnet": "$pod_cidr", "rangeStart": "10.88.0.16", "gateway": "$host_address"}]]}}]}
	END
}

write_kubelet_config() {
	: >"$state/resolv.conf"
	mkdir -p "$state/static-pods"
	cat >"$state/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: $host_address
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
		# No DNS in this cluster. Nothing answers at this address, and look-ups fail at once; without any address each pod
		# would get a warning event, and the machine's own name server. The empty file is for dnsPolicy Default.
		clusterDNS: [$host_address]
		clusterDomain: cluster.local
		resolvConf: $state/resolv.conf
		cgroupDriver: cgroupfs  # there need not be a systemd
		cgroupRoot: /$cgroup
		failCgroupV1: false
		enforceNodeAllocatable: []
		failSwapOn: false
		makeIPTablesUtilChains: false
		maxOpenFiles: 20000  # the default, a million, takes CAP_SYS_RESOURCE
		# A CI machine's disk may be nearly full: that is not this cluster's business until it is.
		evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
		imageGCHighThresholdPercent: 100  # no garbage collection: no registry has these images
		# Pods see a changed Secret or ConfigMap within 10 s instead of 60.
		syncFrequency: 10s
	END
}

write_proxy_config() {
	cat >"$state/kube-proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		clientConnection: {kubeconfig: $state/kube-proxy.conf}
		mode: iptables
		hostnameOverride: $name
		clusterCIDR: $pod_cidr
		healthzBindAddress: 127.0.0.1:10256
		metricsBindAddress: 127.0.0.1:10249
		nodePortAddresses: [$host_address/32]  # not the machine's own addresses
		# Zero leaves the machine's connection tracking as it is (its settings may not be writable either).
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
		iptables: {localhostNodePorts: false}
	END
}

allow_pods_to_talk() {
	# Packets between pods pass the bridge, and only as IP packets can kube-proxy send them elsewhere and back.
	modprobe br_netfilter 2>/dev/null || true
	[[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] || die "the kernel has no br_netfilter: pods could not call Services"
	save_settings # after the module has brought its settings, before anyone changes them
	echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
	echo 1 >/proc/sys/net/ipv4/ip_forward
	# A Docker engine's FORWARD chain drops what it does not know.
	iptables --wait -C FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null ||
		iptables --wait -I FORWARD -i "$bridge" -o "$bridge" -j ACCEPT || die "iptables does not work on this machine"
}

start_containerd() {
	mkdir -p "$state/containerd"
	if ! alive containerd; then write_containerd_config; fi
	start containerd "$(command -v containerd)" --config "$state/containerd.toml" --log-level warn
}

start_node() {
	# Nothing is elected, so no 15 s of waiting for the lease of a predecessor; no port 0.0.0.0 is served either.
	# Each controller fetches an account of its own first: with the default of 20 requests a second this takes 5 s.
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
	# The folder for device plugins is fixed; --root-dir does not move it.
	if [[ ! -e /var/lib/kubelet ]]; then touch "$state/made-var-lib-kubelet"; fi
	start kubelet "$bin/kubelet" \
		--config="$state/kubelet.yaml" --kubeconfig="$state/kubelet.conf" --root-dir="$state/kubelet" \
		--cert-dir="$state/kubelet/pki" --hostname-override="$name" --node-ip="$host_address"
	# Only then: kube-proxy ends when its configuration is written, even unchanged.
	if ! alive kube-proxy; then write_proxy_config; fi
	start kube-proxy "$bin/kube-proxy" --config="$state/kube-proxy.yaml"
}

node_status() { kubectl_ get --raw "/api/v1/nodes/$name" --request-timeout 5s; }

# Ready, and said so after the kubelet's latest start: right after a restart the API still holds what its predecessor said.
node_ready() {
	local status heartbeat
	status=$(node_status) || return 1
	[[ $status =~ \"type\":\"Ready\",\"status\":\"True\",\"lastHeartbeatTime\":\"([^\"]+)\" ]] || return 1
	heartbeat=$(date -d "${BASH_REMATCH[1]}" +%s)
	((heartbeat >= $(stat -c %Y "$state/run/kubelet.pid")))
}

# Pods that ask for no other are refused until the controller manager has made this one.
default_account() { kubectl_ get --raw /api/v1/namespaces/default/serviceaccounts/default; }

services_routed() { [[ $(iptables --wait -t nat -S KUBE-SERVICES) == *default/kubernetes:https* ]]; }

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
	wait_for kube-controller-manager 30 "the default ServiceAccount is there" default_account
	wait_for kube-proxy 30 "kube-proxy has made its rules" services_routed
}

# The shims that containerd starts for pods are children of nobody; this cluster's socket is in their arguments.
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
	# containerd keeps the shims' sockets outside its own folders, and a shim that is killed leaves its socket there.
	for file in "$state"/containerd/run/io.containerd.runtime.v2.task/k8s.io/*/address; do
		if [[ -f $file ]]; then sockets+=("$(<"$file")"); fi
	done
	# Not task by task through containerd: a hundred pods would take half a minute. The processes by their cgroups, then
	# the shims that look after them; mounts and cgroups follow, and the rest is files below our own folder.
	stop 10 containerd
	kill_cgroups
	for pid in $(shims); do kill -KILL "$pid" 2>/dev/null || true; done
	rm -f "${sockets[@]#unix://}"
	remove_cgroups
	if [[ -d /var/log/containers ]]; then find /var/log/containers -lname "$state/*" -delete; fi
	if [[ -e $state/made-var-lib-kubelet ]]; then rm -rf --one-file-system /var/lib/kubelet; fi
	# What the CNI library remembers of each pod, also outside: our network's, and the loopback's of the same pod.
	for file in "/var/lib/cni/results/pristine-$name-"*-eth0; do
		sandbox=${file##*"/pristine-$name-"}
		rm -f "$file" "/var/lib/cni/results/cni-loopback-${sandbox%-eth0}-lo"
	done
	rmdir /run/containerd/{s,} /var/lib/cni/{results,} 2>/dev/null || true
}

remove_proxy_rules() {
	command -v iptables >/dev/null || return 0
	iptables --wait -D FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null || true
	local command table rules
	# 'kube-proxy --cleanup' leaves some of its chains behind. Empty them, drop the jumps to them, drop them: each table
	# in one step, and without touching what others have put there meanwhile.
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
