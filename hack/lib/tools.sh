# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Programs of other projects, built from their own source: Go modules that the tests use, and crates that build and check
# Pristine. Built programs stay in the cache.

# Exact versions: what they write is published, and what they find differs from version to version.
declare -A crates=([cargo-audit]=0.22.2 [cargo-auditable]=0.7.7 [cargo-cyclonedx]=0.5.9 [cargo-deny]=0.20.2 [cargo-mutants]=27.1.0)

# crate NAME: builds this program of crates.io unless it was built before, and prints its path.
crate() {
	local folder=${PRISTINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pristine}/crates/$1-${crates[$1]}
	if [[ ! -x $folder/bin/$1 ]]; then
		log "building $1 ${crates[$1]} (some minutes on 2 cores)"
		# Without optimizations: they run for seconds. What the caller sets for its own build does not apply.
		env -u CARGO_TARGET_DIR -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS CARGO_PROFILE_DEV_DEBUG=0 \
			cargo install --quiet --locked --debug --version "${crates[$1]}" --root "$folder" "$1" >&2 ||
			die "could not build $1 ${crates[$1]} (see above)"
	fi
	echo "$folder/bin/$1"
}

# hack/tools/NAME has go.mod and go.sum with exact versions, and a main.go where the other project is a library.

# tool NAME...: builds each program unless it was built before, and exports its path: PRISTINE_HELM for helm.
tool() {
	local name source folder variable
	for name in "$@"; do
		source=$here/tools/$name
		# A folder for each content of the module, so that a changed version is built again.
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
