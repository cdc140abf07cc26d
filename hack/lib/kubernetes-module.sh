# shellcheck shell=bash
# The Go module that builds a version of Kubernetes: go.mod and go.sum, no Go code. Go's module proxy has all versions.

kubernetes_tools=(go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube{-apiserver,-controller-manager,-proxy,-scheduler,adm,ctl,let})

# resolve_kubernetes VERSION: sets REPLY to the whole version: v1.30.14 for 1.30.14; for 1.30, its newest patch.
resolve_kubernetes() {
	local version=v${1#v}
	[[ $version =~ ^v1\.([0-9]+)(\.[0-9]+(-[a-z]+\.[0-9]+)?)?$ ]] || die "not a version of Kubernetes: $1" "examples: v1.37.2, 1.30"
	((BASH_REMATCH[1] >= 30)) || die "Kubernetes $1 is too old for Pristine, which needs 1.30 or newer"
	REPLY=$version
	if [[ -n ${BASH_REMATCH[2]} ]]; then return; fi
	command -v go >/dev/null || die "only Go can find the newest patch of Kubernetes $1, and Go is not installed" "name a patch, as in $version.1"
	REPLY=$(cd / && GOWORK=off GOFLAGS='' go list -m -f '{{.Version}}' "k8s.io/kubernetes@$version") ||
		die "the module proxy has no Kubernetes $1, or cannot be reached" "name a patch, as in $version.1"
}

# write_kubernetes_module VERSION FOLDER: writes go.mod and go.sum into the folder, with the replacements and the etcd
# version that k8s.io/kubernetes itself uses. If there is a go.mod, the comment at its top stays.
write_kubernetes_module() {
	# The libraries (k8s.io/api and so on) have the tag v0.37.2 for Kubernetes v1.37.2.
	local version=$1 folder=$2 staging=v0.${1#v1.} theirs etcd go work
	local -x GOWORK=off GOFLAGS=''
	log "asking the module proxy for k8s.io/kubernetes@$version"
	theirs=$(cd / && go mod download -json "k8s.io/kubernetes@$version" | sed -nE 's/^[[:space:]]*"GoMod": "(.*)",?$/\1/p') || true
	[[ -f $theirs ]] || die "the module proxy has no k8s.io/kubernetes@$version, or cannot be reached"
	etcd=$(sed -nE 's|^[[:space:]]*go\.etcd\.io/etcd/server/v3 (v[^ ]+).*|\1|p' "$theirs")
	[[ -n $etcd ]] || die "$theirs does not require go.etcd.io/etcd/server/v3: does this Kubernetes use another etcd module?"
	go=$(sed -nE 's/^go ([0-9].*)/\1/p' "$theirs")

	mkdir -p "$folder"
	work=$(mktemp -d)
	{
		if [[ -f $folder/go.mod ]]; then sed '/^module /,$d' "$folder/go.mod"; fi
		echo "module pristine.invalid/hack/kubernetes"
		echo
		if [[ $go =~ ^(1\.([0-9]+)) && ${BASH_REMATCH[2]} -lt 24 ]]; then
			# "tool" needs Go 1.24. The programs still behave as those of the release, which were built with an older Go.
			printf 'go 1.24.0\n\ngodebug default=go%s\n' "${BASH_REMATCH[1]}"
		else
			echo "go $go"
		fi
		echo
		echo "tool ("
		printf '\t%s\n' "${kubernetes_tools[@]}"
		echo ")"
		echo
		printf 'require (\n\tgo.etcd.io/etcd/server/v3 %s\n\tk8s.io/kubernetes %s\n)\n\n' "$etcd" "$version"
		echo "replace ("
		# Kubernetes replaces these modules with its own ./staging directories, and a module's replacements do not apply to its users.
		sed -nE "s|^[[:space:]]*(k8s\.io/[^ ]+) => \./staging/.*|\t\1 => \1 $staging|p" "$theirs"
		echo ")"
	} >"$work/go.mod"
	log "resolving the other modules (go mod tidy)"
	if ! (cd "$work" && go mod tidy); then
		rm -rf "$work"
		die "could not resolve the modules of Kubernetes $version (see above)"
	fi
	# go.sum last: only with it is the module complete.
	mv "$work/go.mod" "$folder/go.mod"
	mv "$work/go.sum" "$folder/go.sum"
	rm -rf "$work"
	log "wrote $folder/go.mod and go.sum: Kubernetes $version, etcd $etcd"
}
