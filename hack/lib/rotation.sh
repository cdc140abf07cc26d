# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Starts what tests/control_plane needs, two API servers on one etcd, and exports their addresses.

rotation_cluster_name() { if [[ ${1-} == on ]]; then echo load-balancing; else echo control-plane; fi; }

# rotation_cluster [on]: API servers choose a replica for every connection, as they do up to Kubernetes 1.36, and later
# without --enable-aggregator-routing. With "on", in a cluster of its own, they have the feature gate
# WebhookRoundTripLoadBalancing, on by default since 1.37, and choose one for every call.
rotation_cluster() {
	local folder name gate=false
	name=$(rotation_cluster_name "${1-}")
	if [[ ${1-} == on ]]; then gate=true; fi
	hack/cluster up --control-plane-only --name "$name" --api-servers 2 --feature-gates "WebhookRoundTripLoadBalancing=$gate"
	folder=$(hack/cluster env --name "$name" | sed -nE 's/^export KUBECONFIG="?([^" ]*)\/admin\.conf.*/\1/p')
	set -a
	# shellcheck source=/dev/null
	source "$folder/env"
	PATH=$PRISTINE_CLUSTER_BIN:$PATH
	set +a
}
