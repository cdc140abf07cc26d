# shellcheck shell=bash disable=SC2154,SC2034 # names from and for the sourcing script
# The clusters of this machine, and what distinguishes them: index, ports, addresses.

boot=$(</proc/sys/kernel/random/boot_id)

# One 'up' or 'down' at a time, because they share ports, address ranges and iptables. Started processes do not inherit the lock.
lock_clusters() {
	if ! mkdir -p "$clusters" 2>/dev/null || [[ ! -w $clusters ]]; then
		die "cannot write to $clusters" "set PRISTINE_STATE to a directory that you own"
	fi
	exec {clusters_lock}>"$clusters/.lock"
	if ! flock -n "$clusters_lock"; then
		log "waiting for another hack/cluster to finish (lock: $clusters/.lock)"
		flock "$clusters_lock"
	fi
}

# Saves what was chosen when the cluster was created, so that it keeps its ports and addresses.
save_cluster() {
	cat >"$state/cluster.new" <<-END
		mode=$mode
		cluster_boot=$boot
		index=$index
		etcd_port=$etcd_port
		etcd_peer_port=$etcd_peer_port
		api_ports=(${api_ports[*]})
		feature_gates=$feature_gates
		ip_family=$ip_family
		kubernetes_version=$kubernetes_version
	END
	mv "$state/cluster.new" "$state/cluster"
}

stale=0
load_cluster() {
	[[ -f $state/cluster ]] || return 1
	local cluster_boot=''
	feature_gates='' ip_family=ipv4 kubernetes_version=$default_version
	# shellcheck source=/dev/null
	source "$state/cluster"
	[[ $cluster_boot == "$boot" ]] || stale=1
	use_kubernetes "$kubernetes_version"
	derive
}

# The version of a cluster that 'up' continues; nothing if it starts an empty one.
recorded_version() { (load_cluster && ((!stale)) && echo "$kubernetes_version") || true; }

# The first 48 bits of all IPv6 addresses: a unique local prefix (RFC 4193).
ula=fd70:7269:7374

# in_url ADDRESS: as a URL has it.
in_url() { if [[ $1 == *:* ]]; then echo "[$1]"; else echo "$1"; fi; }

# The cluster's index determines its address ranges, so that no two clusters share one. The cluster with a node has index 0.
derive() {
	bridge=pristine$index
	host_networks=() service_cidrs=() pod_ranges=()
	if [[ $mode == node ]]; then
		# The first addresses of the pods' range are reserved for the host.
		if [[ $ip_family != ipv6 ]]; then
			host_networks+=(10.88.0.1/16) service_cidrs+=(10.96.0.0/16) pod_ranges+=("10.88.0.0/16 10.88.0.16")
		fi
		if [[ $ip_family != ipv4 ]]; then
			host_networks+=("$ula:88::1/64") service_cidrs+=("$ula:96::/112") pod_ranges+=("$ula:88::/64 $ula:88::10")
		fi
		host_address=${host_networks[0]%/*}
		# Pods can reach the API server at this address, other machines cannot.
		api_address=$host_address advertise_address=$host_address
	else
		host_address=10.89.$index.1 host_networks=("10.89.$index.1/24") service_cidrs=("10.97.$index.0/24")
		# The flag is required, but has no effect: no endpoint reconciler runs.
		api_address=127.0.0.1 advertise_address=127.0.0.1
	fi
	service_cidr=$(join "${service_cidrs[@]}")
}

new_cluster() {
	local other
	index=0
	if [[ $mode == control-plane ]]; then
		index=1
		# Skip an index whose bridge already exists: it belongs to a cluster of another PRISTINE_STATE.
		while grep -qsx "index=$index" "$clusters"/*/cluster || [[ -e /sys/class/net/pristine$index && $(<"/sys/class/net/pristine$index/ifalias") != "$state" ]]; do
			index=$((index + 1))
		done
		((index < 255)) || die "too many clusters in $clusters"
	else
		other=$(grep -lsx 'index=0' "$clusters"/*/cluster) || true
		[[ -z $other ]] || die "a machine can run only one cluster with a node, and ${other%/cluster} exists" \
			"remove it first: hack/cluster down --name $(basename "${other%/cluster}")"
	fi
	mkdir -p "$state/logs" "$state/run"
	chmod 700 "$state" # keys, Secrets in etcd
	# The default ports are reserved for the cluster with a node.
	local offset=$((index == 0 ? 0 : 10000))
	free_port $((2379 + offset)) && etcd_port=$REPLY
	free_port $((2380 + offset)) && etcd_peer_port=$REPLY
	api_ports=()
	feature_gates=$gates ip_family=${family:-ipv4}
	use_kubernetes "$wanted_version"
	save_cluster
	derive
}
