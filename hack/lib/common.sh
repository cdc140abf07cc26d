# shellcheck shell=bash disable=SC2154 # names from the sourcing script
# Progress lines, errors, and processes that outlive the script; later runs find them by their recorded pids.
# Callers set $state (the directory of one cluster) before they use the process functions.

begin=${EPOCHREALTIME/[.,]/}

# Prints a progress line on stderr, with the seconds since the script started.
log() {
	local tenths=$(((${EPOCHREALTIME/[.,]/} - begin) / 100000))
	printf '[%3d.%d s] %s\n' $((tenths / 10)) $((tenths % 10)) "$*" >&2
}

die() {
	printf 'error: %s\n' "$1" >&2
	shift
	if (($#)); then printf '       %s\n' "$@" >&2; fi
	exit 1
}

# join ITEM...: with commas between them.
join() {
	local IFS=,
	echo "$*"
}

# install_debian PACKAGE...: installs packages, as root, without starting their services.
install_debian() {
	local output policy=/usr/sbin/policy-rc.d made_policy=0 failed=0 package
	output=$(mktemp)
	if [[ ! -e $policy ]]; then
		# Exit code 101 means "do not start services".
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made_policy=1
	fi
	{ DEBIAN_FRONTEND=noninteractive apt-get update -q &&
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >"$output" 2>&1 </dev/null || failed=1
	if ((made_policy)); then rm -f "$policy"; fi
	if ((failed)); then
		tail -n 20 "$output" | sed 's/^/       | /' >&2
		die "could not install $* (log: $output)"
	fi
	rm -f "$output"
	# With systemd, do not start them at the next boot either. Most packages have no service at all.
	if [[ -d /run/systemd/system ]]; then
		for package in "$@"; do systemctl disable --now --quiet "$package" 2>/dev/null || true; done
	fi
}

# need PROGRAM: installs the Debian package of that name if the program is missing.
need() {
	if command -v "$1" >/dev/null; then return; fi
	if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
		die "$1 is missing" "Install it with your package manager. As root on Debian, this script installs it."
	fi
	log "installing $1"
	install_debian "$1"
}

# die_with_log COMPONENT MESSAGE
die_with_log() {
	local file=$state/logs/$1.log
	printf 'error: %s\n' "$2" >&2
	if [[ -s $file ]]; then
		printf '       last lines of %s:\n' "$file" >&2
		tail -n 20 "$file" | cut -c -400 | sed 's/^/       | /' >&2
	fi
	exit 1
}

# wait_for COMPONENT SECONDS WHAT COMMAND...: waits until COMMAND succeeds; fails early if the component exits.
wait_for() {
	local component=$1 seconds=$2 what=$3
	shift 3
	local end=$((SECONDS + seconds))
	until "$@" >/dev/null 2>&1; do
		alive "$component" || die_with_log "$component" "$component exited unexpectedly"
		((SECONDS < end)) || die_with_log "$component" "timed out after $seconds s, waiting until $what"
		sleep 0.1
	done
}

# The start time of a process, in ticks since boot. Pid and start time together identify a process until the next reboot.
# Fails if the process does not exist or is a zombie.
start_time() {
	local stat fields
	{ stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
	# The program's name, in parentheses, may contain spaces. So count the fields after it.
	read -ra fields <<<"${stat##*) }"
	[[ ${fields[0]} != [ZX] ]] || return 1
	echo "${fields[19]}"
}

# A pid file has three lines: pid, start time, program.
pid_of() { head -n 1 "$state/run/$1.pid" 2>/dev/null; }

# alive COMPONENT: whether the recorded process still runs (and not another one that has its pid by now).
alive() {
	local recorded
	[[ -f $state/run/$1.pid ]] || return 1
	mapfile -t recorded <"$state/run/$1.pid"
	[[ ${#recorded[@]} -eq 3 && -n ${recorded[1]} && $(start_time "${recorded[0]}") == "${recorded[1]}" ]]
}

started=0 # how many processes this run has started

# start COMPONENT PROGRAM ARGUMENT...: starts the component, unless it already runs.
start() {
	local component=$1 program=$2
	shift
	if alive "$component"; then return; fi
	if [[ -f $state/run/$component.pid ]]; then log "$component has died: restarting it"; fi
	mkdir -p "$state/run" "$state/logs"
	(
		# Close all files of the caller: an open pipe would block 'hack/cluster up | tail' forever, and the lock would stay.
		for fd in "/proc/$BASHPID/fd"/*; do
			fd=${fd##*/}
			if ((fd > 2)); then eval "exec $fd>&-"; fi
		done
		cd /
		# An empty environment: a proxy in it would redirect the API server's calls to webhooks and to the kubelet.
		# setsid: the process gets neither the terminal's hang-up nor the Ctrl-C of the caller's process group.
		exec setsid env -i PATH="$PATH" HOME="${HOME:-/root}" "$@" </dev/null >>"$state/logs/$component.log" 2>&1
	) &
	printf '%s\n' "$!" "$(start_time "$!")" "$program" >"$state/run/$component.pid"
	started=$((started + 1))
}

# Whether the process still runs the recorded program. The start time is enough to know; this is a second check before a kill.
is_ours() {
	local recorded arguments
	alive "$1" || return 1
	mapfile -t recorded <"$state/run/$1.pid"
	{ mapfile -d '' -t arguments <"/proc/${recorded[0]}/cmdline"; } 2>/dev/null || return 1
	[[ ${arguments[0]-} == "${recorded[2]}" ]]
}

# stop SECONDS COMPONENT...: sends TERM to all, KILL to those still running after SECONDS, and waits until all have exited.
stop() {
	local seconds=$1 component
	shift
	for component in "$@"; do
		if is_ours "$component"; then kill -TERM "$(pid_of "$component")" 2>/dev/null || true; fi
	done
	local end=$((SECONDS + seconds))
	for component in "$@"; do
		while is_ours "$component" && ((SECONDS < end)); do sleep 0.1; done
		while is_ours "$component"; do
			kill -KILL "$(pid_of "$component")" 2>/dev/null || true
			sleep 0.1
		done
		rm -f "$state/run/$component.pid"
	done
}
