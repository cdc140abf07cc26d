# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Starts what tests/control_plane needs, two API servers on one etcd, and exports their addresses. Source common.sh first.

# rotation_cluster_name [off|on] [VERSION]
rotation_cluster_name() {
	local name=control-plane version=${2-}
	if [[ ${1-} == on ]]; then name=load-balancing; fi
	version=${version#v}
	echo "$name${version:+-${version//./-}}"
}

# The replicas that a run of these tests has started, as lines "pid program". Those in the containers of a cluster have other
# names.
test_replicas() {
	local folder words word
	for folder in /proc/[0-9]*; do
		words=()
		{ mapfile -d '' -t words <"$folder/cmdline"; } 2>/dev/null || continue # it has exited
		if [[ ${words[0]-} != */pristine || ${words[1]-} != serve ]]; then continue; fi
		for word in "${words[@]}"; do
			if [[ $word == --pod-name=replica-* ]]; then echo "${folder##*/} ${words[0]}"; fi
		done
	done
}

# Ends the script while replicas of another run exist: a run that is killed leaves them behind.
refuse_other_replicas() {
	local others
	mapfile -t others < <(test_replicas)
	if ((${#others[@]} == 0)); then return; fi
	die "replicas of another run of these tests are running:" \
		"${others[@]/#/pid }" \
		"They hold the same ports (18080 and 18250, and those after them), Lease and CA, so the tests would fail because of them." \
		"If that run goes on, wait until it has ended. If it was killed, end what it left: kill -KILL ${others[*]%% *}"
}

# rotation_cluster [off|on] [VERSION]: API servers choose a replica for every connection, as they do up to Kubernetes 1.36,
# and later without --enable-aggregator-routing. With "on", they have the feature gate WebhookRoundTripLoadBalancing, on by
# default since 1.37, and choose one for every call. Each gate and each VERSION has a cluster of its own.
rotation_cluster() {
	local folder name gate=false version=()
	refuse_other_replicas
	name=$(rotation_cluster_name "$@")
	if [[ ${1-} == on ]]; then gate=true; fi
	if [[ -n ${2-} ]]; then version=(--kubernetes "$2"); fi
	hack/cluster up --control-plane-only --name "$name" --api-servers 2 --feature-gates "WebhookRoundTripLoadBalancing=$gate" "${version[@]}"
	folder=$(hack/cluster env --name "$name" | sed -nE 's/^export KUBECONFIG="?([^" ]*)\/admin\.conf.*/\1/p')
	set -a
	# shellcheck source=/dev/null
	source "$folder/env"
	PATH=$PRISTINE_CLUSTER_BIN:$PATH
	set +a
}
