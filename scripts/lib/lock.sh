# shellcheck shell=bash
# One program at a time in a folder. Sourced, after scripts/lib/setup.sh (for say and die).

# lock_folder FOLDER: ends the program if another one holds the folder; else holds it until this program and the commands
# that it started are gone, however they end. A training that outlives its script thus keeps the folder, too.
lock_folder() {
    local file=$1/.steps.lock status=0 holder
    if ! command -v flock >/dev/null; then
        say "there is no program flock here, so nothing keeps a second start out of $1"
        return
    fi
    if ! { exec {steps_lock}>>"$file"; } 2>/dev/null; then
        say "$file cannot be written, so nothing keeps a second start out of $1"
        return
    fi
    flock -w 1 "$steps_lock" || status=$? # what was killed just now takes a moment to go
    if [ "$status" -eq 1 ]; then
        holder=$(tr -cd '[:alnum:] :,.+_-' <"$file" | head -c 200)
        die "$1 is in use by another run${holder:+ ($holder)}; wait until it ends, stop it, or choose another folder."
    elif [ "$status" -ne 0 ]; then
        say "$1 cannot be locked (flock ended with status $status), so nothing keeps a second start out of it"
        return
    fi
    printf 'process %s on %s, since %s\n' "$$" "${HOSTNAME:-this machine}" "$(date '+%Y-%m-%d %H:%M:%S %z')" >"$file"
}
