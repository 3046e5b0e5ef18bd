# shellcheck shell=bash
# Runs a command so that a request to stop reaches those who can act on it, and its exit status comes out; or prints it.
# Sourced by scripts/lib/launch.sh and scripts/lib/steps.sh.

# shellcheck disable=SC2034 # read by those who source this
PREEMPTED=75 # exit status of a trainer that was told to stop and saved before it did

# supervise DEPTH COMMAND...: runs COMMAND and returns its status. SIGTERM and SIGUSR1, which schedulers send, arrive as
# SIGTERM at the processes DEPTH generations below it (0: COMMAND itself; slurm: all steps of the SLURM job), and the wait
# goes on until COMMAND ends. Ctrl-C reaches COMMAND from the terminal. COMMAND is a program, not a function.
supervise() {
    local depth=$1 child status told early='' interrupted=1 ended
    shift
    # Bash can lose the status of a child that ends while `wait` is interrupted by a trap, and gives 255 then: Ctrl-C must
    # not interrupt it, and behind the others the shell that COMMAND runs in says by a pipe how it ended.
    trap '' INT
    trap 'early=1' TERM USR1
    exec {ended}<> <(:)
    (
        trap - INT # a command in the background would ignore Ctrl-C, and without <&0 it could not ask for a login
        trap : TERM USR1
        status=0
        "$@" {ended}>&- || status=$?
        echo "$status" >&"$ended"
    ) <&0 &
    child=$!
    trap 'interrupted=1; stop_gently "$child" "$depth"' TERM USR1
    if [ -n "$early" ]; then stop_gently "$child" "$depth"; fi
    while [ "$interrupted" = 1 ]; do
        interrupted=0 status=0
        wait "$child" || status=$? # a signal ends the wait early; waiting again gives the status
    done
    if read -r -t 0.1 -u "$ended" told; then status=$told; fi
    exec {ended}>&-
    trap - TERM USR1 INT
    return "$status"
}

# stop_gently PID DEPTH: SIGTERM to the processes DEPTH generations below the command that the shell PID runs, or to the
# command where there are none.
stop_gently() {
    local command='' found try
    if [ "$2" = slurm ]; then
        scancel --signal=TERM "$SLURM_JOB_ID" || true
        return 0
    fi
    for ((try = 0; try < 1000; try++)); do # until it has begun
        command=$(descendants "$1" 1)
        if [ -n "$command" ] || ! kill -0 "$1" 2>/dev/null; then break; fi
    done
    if [ -n "$command" ]; then found=$(descendants "$command" "$2"); fi
    # shellcheck disable=SC2086 # a list of numbers
    kill -TERM ${found:-$command} 2>/dev/null || true
}

# descendants PID DEPTH: prints the processes so many generations below PID.
descendants() {
    local children child
    if [ "$2" -eq 0 ]; then
        echo "$1"
        return 0 # a bare return in a trap gives what came before the trap
    fi
    children=$(cat /proc/"$1"/task/*/children 2>/dev/null || pgrep -P "$1" 2>/dev/null || true)
    for child in $children; do descendants "$child" "$(($2 - 1))"; done
}

# print_command WORD...: one line that a shell reads as these words.
print_command() {
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
}
