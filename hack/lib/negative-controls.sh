# shellcheck shell=bash disable=SC2154 # $here is the sourcing script's
# Mistakes on purpose: what is committed, with one of the patches of hack/negative-controls, in $work/tree.

# The tree and $work go with the script; what is built in the tree stays in target/negative-controls.
negative_control_tree() {
	work=$(mktemp -d)
	trap 'git worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"' EXIT
	git worktree add --quiet --detach "$work/tree"
	mkdir -p target/negative-controls
	ln -s "$PWD/target/negative-controls" "$work/tree/target"
}

# make_mistake PATCH: this one, and no other. Its first line says what it is.
make_mistake() {
	log "control $(basename -s .patch "$1"): $(sed -n 1p "$1")"
	git -C "$work/tree" checkout --quiet -- .
	git -C "$work/tree" apply "$1"
}
