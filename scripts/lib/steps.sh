# shellcheck shell=bash
# A program of several steps that goes on where it stopped. Sourced, after scripts/lib/setup.sh (for say and die).
#
#   begin_steps FOLDER IDENTITY       # where markers and times are kept; what everything follows from
#   step NAME TARGET COMMAND...       # writes TARGET, unless the same command after the same steps did so already

# shellcheck source=scripts/lib/supervise.sh
source scripts/lib/supervise.sh

# begin_steps FOLDER IDENTITY [redo|keep]: a target that was made under other settings is made anew; with keep, a folder
# is left alone and the step refused, because it may have cost days.
begin_steps() {
    steps_folder=$1 chain=$2 steps_on_change=${3:-redo} timings=$1/timings.tsv
    mkdir -p "$steps_folder"
    touch "$timings"
}

# record NAME SECONDS: keeps the time of a step for the report.
record() {
    { grep -v "^$1"$'\t' "$timings" || true; printf '%s\t%s\n' "$1" "$2"; } >"$timings.new"
    mv "$timings.new" "$timings"
}

# step NAME TARGET COMMAND...: runs a step that writes TARGET (a file or folder), unless it did so already with this
# command after these earlier steps. A step that fails ends the program with its status.
step() {
    local name=$1 target=$2 marker="$steps_folder/.done-${1//[^A-Za-z0-9]/-}" began=$SECONDS identity status=0
    shift 2
    chain="$chain|$*"
    identity=$(printf '%s' "$chain" | cksum)
    if [ -e "$target" ] && [ "$(cat "$marker" 2>/dev/null)" = "$identity" ]; then
        say "$name: done already, in $target"
        return
    fi
    if [ "$(cat "$marker-begun" 2>/dev/null)" != "$identity" ]; then clear_target "$name" "$target"; fi
    say "$name ..."
    rm -f "$marker"
    printf '%s' "$identity" >"$marker-begun"
    supervise 0 "$@" || status=$?
    if [ "$status" -eq "$PREEMPTED" ]; then
        say "$name was told to stop and saved; the same command goes on from there"
        exit "$status"
    elif [ "$status" -ne 0 ]; then
        printf 'error: %s failed with status %s; see above. The command was: %s\n' "$name" "$status" "$*" >&2
        exit "$status"
    fi
    printf '%s' "$identity" >"$marker"
    record "$name" "$((SECONDS - began))"
    say "$name: $((SECONDS - began)) s, written to $target"
}

# clear_target NAME TARGET: unfinished work goes on, but not work that was begun under other settings.
clear_target() {
    if [ -d "$2" ] && [ "$steps_on_change" = keep ]; then
        die "$1: $2 was made under other settings. Remove it to make it anew, or choose another output folder."
    fi
    rm -rf "$2"
}
