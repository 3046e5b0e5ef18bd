# shellcheck shell=bash
# What a script says and what it accepts: numbers, words and paths that come from outside. Sourced by the others.
#
# Bash evaluates a variable's text in arithmetic and in [[ a -gt b ]], commands in it included (`a[$(date)]`), and takes
# 08 for a wrong octal number. So nothing from the environment, an argument or a tool's output is calculated with before
# `whole` or `count` saw it.

# note WORD...: a line on stderr; control characters, which a terminal would act on, become '?'.
note() {
    local text="$*"
    printf '%s\n' "${text//[[:cntrl:]]/?}" >&2
}

# refuse WORD...: a wrong setting or argument ends the script before anything starts.
refuse() {
    note "error: $*"
    exit 2
}

# one_of NAME VALUE WORD...: refuses a value that is none of the words.
one_of() {
    local name=$1 value=$2 word
    shift 2
    for word in "$@"; do
        if [ "$word" = "$value" ]; then return; fi
    done
    printf -v word '%s, ' "$@"
    refuse "$name is '$value'; accepted are ${word%, }."
}

# is_count VALUE: digits alone, at most 12 of them and no 0 in front, so that the number is what it looks like and sums
# and products of few such stay exact. The digits are named because ranges depend on the locale.
is_count() { [[ $1 =~ ^(0|[123456789][0123456789]{0,11})$ ]]; }

# whole NAME VALUE [MOST]: refuses what is not a whole number from 1 to MOST, a million without it.
whole() {
    [[ $2 =~ ^[123456789][0123456789]*$ ]] || refuse "$1 is '$2'; it must be a whole number from 1 on."
    is_count "$2" && [ "$2" -le "${3:-1000000}" ] || refuse "$1 is '$2'; at most ${3:-1000000} is accepted."
}

# boolean NAME VALUE: refuses what the trainer would not read as True or False.
boolean() {
    case ${2,,} in
        true | false | yes | no | 1 | 0 | t | f | y | n) ;;
        *) refuse "$1 is '$2'; accepted are True and False." ;;
    esac
}

is_true() { [[ ${1,,} =~ ^(true|yes|1|t|y)$ ]]; }

# host NAME VALUE: refuses what is no name or address of a machine. Launchers hand it to ssh and to shells elsewhere.
host() {
    local name='^[][A-Za-z0-9_:][][A-Za-z0-9_.:%@-]*$'
    [[ $2 =~ $name ]] || refuse "$1 is '$2', which is no name or address of a machine."
}

# plain_text NAME VALUE: refuses line breaks and other control characters.
plain_text() {
    if [[ $2 == *[[:cntrl:]]* ]]; then refuse "$1 is '$2', which has a line break or another control character."; fi
}

# runnable NAME PROGRAM: refuses what cannot be run here; a path with spaces is one word.
runnable() {
    [ -n "$(type -P -- "$2" || true)" ] || refuse "$1 is '$2', which is no program that can be run here."
}

has() { command -v "$1" >/dev/null 2>&1; }

# === Folders that are written to ===

# target_folder NAME PATH: refuses a path that names no folder, or that only looks as if it did.
target_folder() {
    plain_text "$1" "$2"
    case $2 in
        -*) refuse "$1 is '$2', which looks like an option; write './$2' for a folder of this name." ;;
        '~'*) refuse "$1 is '$2', in which nothing replaced the ~; write '$HOME${2#'~'}', or './$2' for that name." ;;
    esac
    if [ -L "$2" ] && [ ! -e "$2" ]; then refuse "$1 is '$2', a link that leads nowhere; remove it or name another folder."; fi
    if [ -e "$2" ] && [ ! -d "$2" ]; then refuse "$1 is '$2', which is a file; name a folder."; fi
}

# entries FOLDER [PATTERN]: prints the names in a folder, hidden ones too, a line each; nothing for one that is not there.
entries() (
    shopt -s nullglob dotglob
    # shellcheck disable=SC2206 # the pattern is one
    found=("$1"/${2:-*})
    if [ "${#found[@]}" -gt 0 ]; then printf '%s\n' "${found[@]##*/}"; fi
)
