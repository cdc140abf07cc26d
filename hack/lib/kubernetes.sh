# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Builds the Kubernetes programs, into a cache with one directory per version: the default version from the Go module in
# hack/kubernetes, others from modules that are in the cache themselves.

# shellcheck source=kubernetes-module.sh
source "$here/lib/kubernetes-module.sh"

cache=${PRISTINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pristine}

# use_kubernetes VERSION: what follows builds this version, a whole one such as v1.30.14.
use_kubernetes() {
	[[ $1 =~ ^v([0-9]+)\.([0-9]+)\.[0-9]+ ]] || die "not a version of Kubernetes: $1"
	kubernetes_version=$1 kubernetes_major=${BASH_REMATCH[1]} kubernetes_minor=${BASH_REMATCH[2]}
	built=$cache/kubernetes/$1/bin
	module=$cache/kubernetes/$1
	if [[ $1 == "$default_version" ]]; then module=$here/kubernetes; fi
}

default_version=$(sed -nE 's|^[[:space:]]*k8s\.io/kubernetes (v[^ ]+).*|\1|p' "$here/kubernetes/go.mod")
[[ -n $default_version ]] || die "no k8s.io/kubernetes version in $here/kubernetes/go.mod"
use_kubernetes "$default_version"

# shellcheck disable=SC2034 # for hack/cluster
control_plane_programs=(etcd kube-apiserver kubectl kubeadm)
# shellcheck disable=SC2034 # for hack/cluster
node_programs=(kube-controller-manager kube-scheduler kubelet kube-proxy)

package_of() {
	case $1 in
	etcd) echo go.etcd.io/etcd/server/v3 ;;
	*) echo "k8s.io/kubernetes/cmd/$1" ;;
	esac
}

# The path of a program: in KUBEBUILDER_ASSETS (etcd, kube-apiserver, kubectl) if it is there, else from this build.
# Only with --control-plane-only: a node's programs must have the API server's version, or be up to three versions older.
# And only in place of the default version: a version that was asked for is the one that runs.
path_of() {
	if [[ $mode == control-plane && $kubernetes_version == "$default_version" && -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/$1 ]]; then
		echo "$KUBEBUILDER_ASSETS/$1"
	else
		echo "$built/$1"
	fi
}

need_go() {
	command -v go >/dev/null || die "building Kubernetes $kubernetes_version needs Go, and Go is not installed" \
		"install it from https://go.dev/dl/ (Go 1.21 or newer fetches the rest by itself)" \
		"or, with --control-plane-only, set KUBEBUILDER_ASSETS to a directory with etcd, kube-apiserver and kubectl (kubeadm still has to be built)"
}

need_module() {
	local needs
	if [[ ! -f $module/go.sum ]]; then write_kubernetes_module "$kubernetes_version" "$module"; fi
	needs=$(sed -nE 's/^go ([0-9.]+)$/\1/p' "$module/go.mod")
	# Fails if this Go is too old and must not download a newer one (GOTOOLCHAIN=local).
	(cd "$module" && GOWORK=off go env GOVERSION >/dev/null) || die "Kubernetes $kubernetes_version needs Go $needs; found: $(go version)"
}

missing_programs() {
	local program
	for program in "$@"; do
		if [[ ! -x $(path_of "$program") ]]; then echo "$program"; fi
	done
}

# build PROGRAM...: builds those that are missing.
build() {
	local missing
	mapfile -t missing < <(missing_programs "$@")
	if ((${#missing[@]} == 0)); then return; fi
	need_go
	mkdir -p "$built"
	local lock
	exec {lock}>"$built/.lock"
	if ! flock -n "$lock"; then
		log "waiting for another run that builds Kubernetes (lock: $built/.lock)"
		flock "$lock"
		mapfile -t missing < <(missing_programs "$@")
		if ((${#missing[@]} == 0)); then
			# Not left open: the programs that this script starts would inherit the lock.
			exec {lock}>&-
			return
		fi
	fi
	need_module

	# kubectl, the kubelet and the API server report these. kubeadm and version skew checks reject the default v0.0.0.
	local flags='-s -w' package
	for package in k8s.io/component-base k8s.io/client-go/pkg; do
		flags+=" -X $package/version.gitVersion=$kubernetes_version -X $package/version.gitTreeState=clean"
		flags+=" -X $package/version.gitMajor=$kubernetes_major -X $package/version.gitMinor=$kubernetes_minor"
	done
	log "building ${missing[*]} (about 10 minutes on 2 cores with an empty build cache)"
	local since=$SECONDS folder=$built/.new packages=() program ticker
	for program in "${missing[@]}"; do packages+=("$(package_of "$program")"); done
	# Prints a line every minute. It reads from a pipe, so it exits when this script exits for any reason. A sleep would run on
	# and keep the caller's stderr open.
	exec {ticker}> >(
		while true; do
			# An exit code above 128 is a timeout. Any other means that the writer of the pipe has exited.
			if read -r -t 60 || (($? <= 128)); then break; fi
			log "still building, $((SECONDS - since)) s"
		done
	)
	# One command for all of them, so that one is linked while the next is compiled. The folder is the rest of a build that was
	# interrupted. No cgo: static programs that need no C compiler. The caller's GOFLAGS and go.work do not apply to this module.
	rm -rf "$folder"
	mkdir "$folder"
	if ! (cd "$module" && exec {ticker}>&- &&
		GOFLAGS='' GOWORK=off CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$folder/" "${packages[@]}"); then
		exec {ticker}>&-
		rm -rf "$folder"
		die "could not build Kubernetes $kubernetes_version (see above)"
	fi
	exec {ticker}>&-
	# The package of etcd is called "server".
	if [[ -e $folder/server ]]; then mv "$folder/server" "$folder/etcd"; fi
	# Moved into place at the end, so that an interrupted build leaves no partial program.
	mv "$folder"/* "$built/"
	rmdir "$folder"
	log "built ${#missing[@]} programs in $((SECONDS - since)) s"
	exec {lock}>&-
}
