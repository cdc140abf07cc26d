#compdef kubectl-pristine
# zsh completion for kubectl-pristine. To load it after compinit: source <(kubectl pristine completion zsh)
_kubectl-pristine() {
	local line
	local -a candidates
	for line in "${(@f)$("$words[1]" __complete "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}"; do
		[[ $line == :<-> ]] && continue
		# A candidate, and behind a tab its description. _describe separates them by a colon.
		candidates+=("${${${line%%$'\t'*}//:/\\:}}${${(M)line:#*$'\t'*}:+:${line#*$'\t'}}")
	done
	_describe 'kubectl-pristine' candidates
}
if [[ $funcstack[1] == _kubectl-pristine ]]; then
	_kubectl-pristine "$@"
else
	compdef _kubectl-pristine kubectl-pristine
fi
