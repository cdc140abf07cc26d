# bash completion for kubectl-pristine. To load it: source <(kubectl pristine completion bash)
_kubectl_pristine() {
	local typed=${COMP_LINE:0:COMP_POINT} words word prefix line
	# COMP_WORDS is also split at = and :, where the command line is not.
	read -ra words <<<"$typed"
	if [[ $typed == *[[:space:]] ]]; then words+=(""); fi
	word=${words[${#words[@]} - 1]}
	# bash replaces only what is behind the last of these.
	prefix=${word%"${word##*[=:]}"}
	COMPREPLY=()
	while IFS=$'\t' read -r line _; do
		if [[ $line != :[0-9]* ]]; then COMPREPLY+=("${line#"$prefix"}"); fi
	done < <("$1" __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _kubectl_pristine kubectl-pristine
