# fish completion for kubectl-pristine. To load it: kubectl pristine completion fish | source
function __kubectl_pristine_candidates
	set -l before (commandline --tokenize --cut-at-cursor --current-process)
	set -l word (commandline --current-token --cut-at-cursor)
	$before[1] __complete $before[2..] "$word" 2>/dev/null | string match --invert --regex '^:\d+$'
end
complete --command kubectl-pristine --no-files --arguments '(__kubectl_pristine_candidates)'
