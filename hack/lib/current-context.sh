# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# A cluster that hack/cluster did not start: the one of the current kubectl context, such as one of kind.

# refuse_if_installed: tests and demo would overwrite the rules of that install, and remove it at their end.
refuse_if_installed() {
	local context installed
	context=$(kubectl config current-context)
	installed=$(kubectl get --ignore-not-found -o name namespace/pristine-system validatingwebhookconfiguration/pristine)
	[[ -z $installed ]] || die "Pristine is installed in the cluster of the context $context already ($(xargs <<<"$installed")). \
Nothing was changed. $1"
}

# load_into_kind ARCHIVE...: into the nodes of the current context, if it is a cluster of kind.
load_into_kind() {
	local context archive
	context=$(kubectl config current-context)
	if [[ $context != kind-* ]] || ! command -v kind >/dev/null; then return; fi
	for archive in "$@"; do kind load image-archive --name "${context#kind-}" "$archive"; done
}
