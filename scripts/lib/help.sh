# shellcheck shell=bash
# Help and the preset's family, for every script. Sourced; does nothing by itself.

# asks_for_help WORD...: whether --help or -h is among the words, wherever it stands.
asks_for_help() {
    local word
    for word in "$@"; do
        if [ "$word" = --help ] || [ "$word" = -h ]; then return 0; fi
    done
    return 1
}

# show_help FILE...: prints the comment at the top of each file.
show_help() {
    local file
    for file in "$@"; do
        sed -n '/^#!\|^# shellcheck/d; /^#/!q; s/^# \{0,1\}//p' "$file"
        echo
    done
}

# fits_llava COMPRESSION: prints why a preset (or a YAML file) is for another family than LLaVA-1.5; nothing if it is not.
# What has no line `for`, and a name that no preset has, is left to the program.
fits_llava() {
    local file="configs/compression/$1.yaml" families
    if [[ $1 == *.yaml || $1 == *.yml ]]; then file=$1; fi
    if [ ! -f "$file" ]; then return; fi
    families=$(sed -n 's/^for: {family: \(\[[^]]*\]\|[^,}]*\).*/\1/p' "$file" | tr -d '[]')
    if [ -n "$families" ] && [[ ", $families," != *", llava-1.5,"* ]]; then
        echo "the compression $1 is made for $families, but this trains a LLaVA-1.5; give one of its presets, such as" \
            "duet-192, or a YAML file of your own."
    fi
}

# refuse_flags_among COUNT WORD...: ends the script where one of the first COUNT words, whose places decide, is a flag.
refuse_flags_among() {
    local count=$1 word
    shift
    for word in "${@:1:count}"; do
        if [[ $word == -* ]]; then
            echo "error: '$word' stands among the first $count arguments, which are told by their places; flags come" \
                "behind them ('' leaves one as it is). --help lists them." >&2
            exit 2
        fi
    done
}
