# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Starts what tests/control_plane needs, two API servers on one etcd, and exports their addresses.

rotation_cluster() {
	hack/cluster up --control-plane-only --api-servers 2
	local folder
	folder=$(hack/cluster env --control-plane-only | sed -nE 's/^export KUBECONFIG="?([^" ]*)\/admin\.conf.*/\1/p')
	set -a
	# shellcheck source=/dev/null
	source "$folder/env"
	PRISTINE_API_SERVER_PID_2=$(head -n 1 "$folder/run/kube-apiserver-2.pid")
	PATH=$PRISTINE_CLUSTER_BIN:$PATH
	set +a
}
