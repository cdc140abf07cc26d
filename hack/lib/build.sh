# shellcheck shell=bash
# How the binaries that are published are built, and what is written about them. Needs common.sh and tools.sh.

# auditable_build CARGO_ARGUMENT...: `cargo build` of a binary that contains the list of its crates (section .dep-v0, which
# trivy, grype and `cargo audit bin` read), and no path of this machine, so that another folder gives the same bytes.
auditable_build() {
	local cargo_auditable flags sources home
	cargo_auditable=$(crate cargo-auditable)
	sources=$(pwd -P)
	home=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
	read -ra flags <<<"${RUSTFLAGS-}"
	flags+=("--remap-path-prefix=$home=/cargo" "--remap-path-prefix=$sources=/pristine")
	# For the C and assembly of ring: the debug information of a build for development has paths, and the build ID depends on it.
	local in_c="-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$sources=/pristine"
	# Incremental code depends on what was built before.
	CFLAGS="${CFLAGS-} $in_c" CARGO_INCREMENTAL=0 CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${flags[*]}") \
		"$cargo_auditable" auditable build --locked "$@"
}

# sbom TARGET MESSAGES FILE: writes the CycloneDX document of what was compiled for TARGET: crates that are part of the binary,
# macros included, with the scope "required", and those that only build scripts use with the scope "excluded". It has no times
# and no paths, so that the same sources give the same bytes. MESSAGES are those of `cargo build --message-format json`.
sbom() {
	local cargo_cyclonedx rustc name=.pristine-sbom-$$
	cargo_cyclonedx=$(crate cargo-cyclonedx)
	rustc=$(rustc --version)
	SOURCE_DATE_EPOCH=0 "$cargo_cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --target "$1" --override-filename "$name"
	python3 hack/lib/sbom.py "$name.json" "$2" "${rustc#rustc }" >"$3"
	rm "$name.json"
}
