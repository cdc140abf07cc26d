# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Programs of other projects that the tests use, built from Go modules: hack/tools/NAME has go.mod and go.sum with exact
# versions, and a main.go where the other project is a library. Built programs stay in the cache.

# tool NAME...: builds each program unless it was built before, and exports its path: PRISTINE_HELM for helm.
tool() {
	local name source folder variable
	for name in "$@"; do
		source=$here/tools/$name
		# A folder for each content of the module, so that a changed version is built anew.
		folder=${PRISTINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pristine}/tools/$name-$(cat "$source"/* | sha256sum | cut -c -12)
		variable=${name//-/_}
		export "PRISTINE_${variable^^}=$folder/$name"
		if [[ -x $folder/$name ]]; then continue; fi
		command -v go >/dev/null || die "building $name needs Go, and Go is not installed" "install it from https://go.dev/dl/"
		log "building $name (some minutes with an empty build cache)"
		mkdir -p "$folder"
		# The caller's GOFLAGS and go.work do not apply. `tool` is the package that go.mod names.
		(cd "$source" && GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 go build -o "$folder/$name.new" "$(if [[ -f main.go ]]; then echo .; else echo tool; fi)") ||
			die "could not build $name (see above)"
		mv "$folder/$name.new" "$folder/$name"
	done
}
