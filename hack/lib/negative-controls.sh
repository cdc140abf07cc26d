# shellcheck shell=bash disable=SC2154 # $here is the sourcing script's
# Negative controls: the committed code in $work/tree, with one deliberate mistake, a patch of hack/negative-controls.

# The tree and $work are removed when the script exits. Build output of the tree is kept in target/negative-controls.
negative_control_tree() {
	work=$(mktemp -d)
	trap 'git worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"' EXIT
	git worktree add --quiet --detach "$work/tree"
	mkdir -p target/negative-controls
	ln -s "$PWD/target/negative-controls" "$work/tree/target"
}

# make_mistake PATCH: applies this patch and reverts the previous one. The first line of a patch describes its mistake.
make_mistake() {
	log "negative control $(basename -s .patch "$1"): $(sed -n 1p "$1")"
	git -C "$work/tree" checkout --quiet -- .
	git -C "$work/tree" apply "$1"
}
