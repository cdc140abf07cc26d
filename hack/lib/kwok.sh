# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Builds kwok, which simulates the kubelet of nodes that do not exist, from its Go module. The published figures were
# measured with this version.

kwok_version=v0.8.0

# kwok_files: builds kwok unless it was built before, and exports PRISTINE_KWOK, the program, and PRISTINE_KWOK_STAGES, the
# file that defines how its nodes and pods behave: a pod is Ready at once, and gone as soon as it is deleted.
kwok_files() {
	local folder=${PRISTINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pristine}/kwok/$kwok_version stages stage
	export PRISTINE_KWOK=$folder/kwok PRISTINE_KWOK_STAGES=$folder/stages.yaml
	if [[ -x $PRISTINE_KWOK && -f $PRISTINE_KWOK_STAGES ]]; then return; fi
	command -v go >/dev/null || die "building kwok $kwok_version needs Go, and Go is not installed" "install it from https://go.dev/dl/"
	log "building kwok $kwok_version (about 4 minutes with an empty build cache)"
	mkdir -p "$folder"
	# The caller's GOFLAGS and go.work do not apply.
	(cd "$folder" && GOBIN=$folder GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0 go install "sigs.k8s.io/kwok/cmd/kwok@$kwok_version") ||
		die "could not build kwok $kwok_version (see above)"
	# They are in the source of kwok and not in the program.
	stages=$(go env GOMODCACHE)/sigs.k8s.io/kwok@$kwok_version/kustomize/stage
	for stage in "$stages"/node/fast/node-*.yaml "$stages"/node/heartbeat-with-lease/node-*.yaml "$stages"/pod/fast/pod-*.yaml; do
		printf '%s\n' '---' && cat "$stage"
	done >"$PRISTINE_KWOK_STAGES.new"
	mv "$PRISTINE_KWOK_STAGES.new" "$PRISTINE_KWOK_STAGES"
}

# simulated_nodes: builds what tests/control_plane/simulated_nodes.rs starts, and exports the paths.
simulated_nodes() {
	kwok_files
	# In a shell of its own: for hack/cluster, these names have other meanings.
	export PRISTINE_CONTROLLERS
	PRISTINE_CONTROLLERS=$(
		mode=node
		# shellcheck source=kubernetes.sh
		source "$here/lib/kubernetes.sh"
		build kube-controller-manager kube-scheduler >&2
		echo "$built"
	)
}
