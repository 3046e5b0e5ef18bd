# shellcheck shell=bash
# A program of several steps that goes on where it stopped. Sourced, after scripts/lib/setup.sh (for say, die and refuse).
#
#   check_steps NAME FOLDER           # refuses a folder that is not this program's; changes nothing
#   begin_steps FOLDER IDENTITY       # where markers and times are kept; what everything follows from
#   step NAME TARGET COMMAND...       # writes TARGET, unless the same command after the same steps did so already
#
# FOLDER holds a file .made-by with the program's name, and a marker for each step that was begun. What has no marker is
# somebody else's and is never removed.

# shellcheck source=scripts/lib/supervise.sh
source scripts/lib/supervise.sh
# shellcheck source=scripts/lib/lock.sh
source scripts/lib/lock.sh

# The program, as the file .made-by names it.
STEPS_PROGRAM=scripts/$(basename -- "$0")

# check_steps NAME FOLDER: refuses to write into a folder that holds anything, unless this program made it. NAME is the
# variable that names it.
check_steps() {
    local made_by='' found
    target_folder "$1" "$2"
    found=$(entries "$2")
    if [ -z "$found" ]; then return; fi
    if [ -f "$2/.made-by" ]; then made_by=$(tr -d '\0' <"$2/.made-by"); fi
    if [ "$made_by" = "$STEPS_PROGRAM" ]; then return; fi
    if [ -z "$made_by" ] && has_former_markers "$2"; then return; fi
    found=${found//$'\n'/, }
    if [ "${#found}" -gt 100 ]; then found="${found:0:100}..."; fi
    refuse "$1 is '$2', which holds $found and was not made by $STEPS_PROGRAM${made_by:+ but by $made_by}." \
        "Nothing there was changed; name a folder that is empty or new."
}

# has_former_markers FOLDER: whether earlier versions of this project, which left no .made-by, began a step there.
has_former_markers() {
    local name
    while read -r name; do
        if grep -qsE '^[0-9]+ [0-9]+$' <"$1/$name"; then return 0; fi
    done < <(entries "$1" '.done-*')
    return 1
}

# forget_steps FOLDER: every step is run again; what it wrote before goes when its turn comes, nothing else does.
forget_steps() {
    local name
    while read -r name; do
        if [[ $name == *-begun ]]; then : >"$1/$name"; else rm -f -- "$1/$name"; fi
    done < <(entries "$1" '.done-*')
}

# begin_steps FOLDER IDENTITY [redo|keep]: a target that was made under other settings is made anew; with keep, a folder
# is left alone and the step refused, because it may have cost days.
begin_steps() {
    steps_folder=$1 chain=$2 steps_on_change=${3:-redo} timings=$1/timings.tsv
    { mkdir -p -- "$steps_folder" && printf '%s\n' "$STEPS_PROGRAM" >"$steps_folder/.made-by"; } ||
        refuse "$steps_folder cannot be written; see above, and name another folder."
    lock_folder "$steps_folder"
    touch -- "$timings" || refuse "$timings cannot be written; see above."
}

# record NAME SECONDS: keeps the time of a step for the report.
record() {
    { grep -v "^$1"$'\t' <"$timings" || true; printf '%s\t%s\n' "$1" "$2"; } >"$timings.new"
    mv -- "$timings.new" "$timings"
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
    if [ "$(cat "$marker-begun" 2>/dev/null)" != "$identity" ]; then
        clear_target "$name" "$target" "$marker"
    fi
    say "$name ..."
    rm -f -- "$marker"
    printf '%s' "$identity" >"$marker-begun"
    supervise 0 "$@" || status=$?
    if [ "$status" -eq "$PREEMPTED" ]; then
        say "$name was told to stop and saved; the same command goes on from there"
        exit "$status"
    elif [ "$status" -eq 130 ] || [ "$status" -eq 143 ]; then # Ctrl-C, SIGTERM
        say "$name was stopped; the same command goes on from there"
        exit "$status"
    elif [ "$status" -ne 0 ]; then
        printf 'error: %s failed with status %s; see above. The command was: %s\n' "$name" "$status" "$*" >&2
        exit "$status"
    fi
    printf '%s' "$identity" >"$marker"
    record "$name" "$((SECONDS - began))"
    say "$name: $((SECONDS - began)) s, written to $target"
}

# clear_target NAME TARGET MARKER: unfinished work goes on, but not work that was begun under other settings. What no step
# began is somebody else's.
clear_target() {
    if [ ! -e "$2" ] && [ ! -L "$2" ]; then return; fi
    if [ ! -e "$3" ] && [ ! -e "$3-begun" ]; then
        refuse "$1: $2 is there, but $STEPS_PROGRAM did not make it. Move it away, or choose another output folder."
    fi
    if [ -d "$2" ] && [ "$steps_on_change" = keep ]; then
        die "$1: $2 was made under other settings. Remove it to make it anew, or choose another output folder."
    fi
    rm -rf -- "$2"
}
