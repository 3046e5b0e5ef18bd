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

# name_of_family FAMILY: prints how the models of a family are written in a sentence.
name_of_family() {
    case $1 in
        llava-1.5) echo LLaVA-1.5 ;;
        llava-next) echo LLaVA-NeXT ;;
        video-llava) echo Video-LLaVA ;;
        qwen2.5-vl) echo Qwen2.5-VL ;;
        qwen3-vl) echo Qwen3-VL ;;
        llava-onevision) echo LLaVA-OneVision ;;
        *) echo "$1" ;;
    esac
}

# families_of COMPRESSION: prints the families that a preset (or a YAML file) is made for, joined by ', '; nothing where
# its file has no line `for`, or there is no such file.
families_of() {
    local file="configs/compression/$1.yaml"
    if [[ $1 == *.yaml || $1 == *.yml ]]; then file=$1; fi
    if [ ! -f "$file" ]; then return; fi
    sed -n 's/^for: {family: \(\[[^]]*\]\|[^,}]*\).*/\1/p' <"$file" | tr -d '[]'
}

# fits_family FAMILY USUAL COMPRESSION [MODEL [SCALES]]: prints why a preset (or a YAML file) is for another family than
# FAMILY, of whose presets USUAL is one, or for another depth than the model's where that is known and SCALES is not
# true; nothing if it is not. What has no line `for`, and a name that no preset has, is left to the program.
fits_family() {
    local family=$1 usual=$2 compression=$3 model=${4:-} file families depth layers
    families=$(families_of "$compression")
    if [ -z "$families" ]; then return; fi
    if [[ ", $families," != *", $family,"* ]]; then
        echo "the compression $compression is made for $families, but this trains a $(name_of_family "$family"); give one" \
            "of its presets, such as $usual, or a YAML file of your own."
        return
    fi
    file="configs/compression/$compression.yaml"
    if [[ $compression == *.yaml || $compression == *.yml ]]; then file=$compression; fi
    depth=$(sed -n 's/^for: {.*layers: \([0-9]*\).*/\1/p' <"$file")
    layers=$(depth_of "$model")
    if ! is_true "${5:-False}" && [ -n "$depth" ] && [ -n "$layers" ] && [ "$depth" != "$layers" ]; then
        echo "the compression $compression is made for $depth decoder layers, but $model has $layers; give" \
            "SCALE_TO_DEPTH=True to scale its layers, COMPRESSION=none, a preset of the family for any depth, or a YAML" \
            "file of your own (a copy of $file without the line for) with layers that suit this model."
    fi
}

# depth_of MODEL: prints how many decoder layers a model has where that is known without asking anybody: from the
# config.json of a folder, or from the name of a 13B Llama. Else nothing.
depth_of() {
    if [ -f "$1/config.json" ]; then
        # The outermost level alone: towers have layers too.
        awk 'match($0, /^[ \t]+"/) {
            if (!outer) outer = RLENGTH
            if (RLENGTH == outer && sub(/^[ \t]+"num_hidden_layers": */, "")) { print $0 + 0; exit }
        }' <"$1/config.json"
    elif [ ! -e "$1" ] && [[ ${1,,} =~ (vicuna|llava|llama).*13b ]]; then
        echo 40
    fi
}

# has_flag_among PREFIXES WORD...: whether a word begins with one of the prefixes, which spaces separate.
has_flag_among() {
    local prefix word
    for prefix in $1; do
        for word in "${@:2}"; do
            if [[ $word == "$prefix"* ]]; then return 0; fi
        done
    done
    return 1
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
