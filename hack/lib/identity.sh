# shellcheck shell=bash disable=SC2154,SC2034 # names from and for the sourcing script
# Which clusters there are, and what tells them apart: index, ports, addresses.

boot=$(</proc/sys/kernel/random/boot_id)

# One 'up' or 'down' at a time: they share ports, address ranges and iptables. Never inherited by what they start.
lock_clusters() {
	if ! mkdir -p "$clusters" 2>/dev/null || [[ ! -w $clusters ]]; then
		die "cannot write to $clusters" "set PRISTINE_STATE to a folder of yours"
	fi
	exec {clusters_lock}>"$clusters/.lock"
	if ! flock -n "$clusters_lock"; then
		log "another hack/cluster is at work: waiting for it (lock: $clusters/.lock)"
		flock "$clusters_lock"
	fi
}

# Everything that a cluster decided when it was made: it keeps its ports and addresses.
save_cluster() {
	cat >"$state/cluster.new" <<-END
		mode=$mode
		cluster_boot=$boot
		index=$index
		etcd_port=$etcd_port
		etcd_peer_port=$etcd_peer_port
		api_ports=(${api_ports[*]})
	END
	mv "$state/cluster.new" "$state/cluster"
}

stale=0
load_cluster() {
	[[ -f $state/cluster ]] || return 1
	local cluster_boot=''
	# shellcheck source=/dev/null
	source "$state/cluster"
	[[ $cluster_boot == "$boot" ]] || stale=1
	derive
}

# Address ranges by the cluster's index, so that no two clusters share one: 0 is the node's.
derive() {
	bridge=pristine$index
	if [[ $mode == node ]]; then
		host_address=10.88.0.1 prefix=16 service_cidr=10.96.0.0/16
		# Pods reach the API server there, other machines do not.
		api_address=$host_address advertise_address=$host_address
	else
		host_address=10.89.$index.1 prefix=24 service_cidr=10.97.$index.0/24
		# Nothing is advertised in truth: there is no endpoint reconciler.
		api_address=127.0.0.1 advertise_address=127.0.0.1
	fi
}

new_cluster() {
	local other
	index=0
	if [[ $mode == control-plane ]]; then
		index=1
		# Nor one of which there is a bridge already: of another PRISTINE_STATE.
		while grep -qsx "index=$index" "$clusters"/*/cluster || [[ -e /sys/class/net/pristine$index && $(<"/sys/class/net/pristine$index/ifalias") != "$state" ]]; do
			index=$((index + 1))
		done
		((index < 255)) || die "too many clusters in $clusters"
	else
		other=$(grep -lsx 'index=0' "$clusters"/*/cluster) || true
		[[ -z $other ]] || die "one cluster with a node is all that a machine takes, and there is ${other%/cluster}" \
			"hack/cluster down --name $(basename "${other%/cluster}")"
	fi
	mkdir -p "$state/logs" "$state/run"
	chmod 700 "$state" # keys, Secrets in etcd
	# A control plane leaves the usual ports to the cluster with the node.
	local offset=$((index == 0 ? 0 : 10000))
	free_port $((2379 + offset)) && etcd_port=$REPLY
	free_port $((2380 + offset)) && etcd_peer_port=$REPLY
	api_ports=()
	save_cluster
	derive
}
