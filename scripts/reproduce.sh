#!/usr/bin/env bash
# One row of the paper's table of trained models: checks the data, trains both phases under one budget, evaluates, and
# prints what came out beside what the paper reports (configs/paper/table-3.yaml).
#
#   PRETRAIN_DATA_PATH=... PRETRAIN_IMAGE_FOLDER=... FINETUNE_DATA_PATH=... FINETUNE_IMAGE_FOLDER=... \
#       bash scripts/reproduce.sh duet-192
#
# The argument is a preset of configs/compression that is made for LLaVA-1.5. A step that is done is skipped, so the same
# command goes on at the step that failed or was interrupted; a phase that was begun under other settings is left alone
# and the script says so.
#
# Both phases are recipes of scripts/v1_5 and read their environment variables (bash scripts/v1_5/finetune.sh --help).
# For one phase alone: PRETRAIN_ or FINETUNE_ in front of the name, as in PRETRAIN_BATCH_SIZE=16. Besides:
#
#   OUTPUT             where everything goes: a new folder, an empty one, or one of an earlier run
#                                                                   ./checkpoints/reproduce/llava-v1.5-7b-PRESET
#   IMAGE_OPENING      llava, as published, or upright              llava
#   EVAL_FOLDER        benchmarks, as LLaVA lays them out           ./playground/data/eval
#   EVALUATE           0 trains without evaluating                  1
#   MAX_BAD_SHARE      records that may have errors                 0
#   CHECK              0 leaves out the check of data, benchmarks   1
#   PYTHON             interpreter of checks and evaluation         python
#   DRY_RUN            1 only prints the command of every step      0
#
# Status 75 means that a phase was told to stop and saved; the same command goes on.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/help.sh
source scripts/lib/help.sh
if asks_for_help "$@"; then
    show_help scripts/reproduce.sh
    exit 0
fi
# shellcheck source=scripts/lib/setup.sh
source scripts/lib/setup.sh
# shellcheck source=scripts/lib/steps.sh
source scripts/lib/steps.sh

# Variables that decide what is learned. A phase that was begun under others is not continued.
SETTINGS=(
    MODEL VISION_TOWER PROJECTOR VERSION IMAGE_ASPECT IMAGE_OPENING LEARNING_RATE WARMUP_RATIO SCHEDULER WEIGHT_DECAY
    EPOCHS MAX_STEPS MAX_LENGTH GLOBAL_BATCH_SIZE ACCUMULATION BF16 FP16 SEED
)

# The published numbers come from models that saw images as LLaVA opens them, rotation marks left aside.
IMAGE_OPENING=${IMAGE_OPENING:-llava}

preset=${1:-}
if [ "$#" -ne 1 ] || [[ $preset == */* ]] || [ ! -f "configs/compression/$preset.yaml" ]; then
    presets=$(CDPATH='' cd configs/compression && printf '%s, ' *.yaml)
    refuse "the preset is '$*'; give one of $(sed 's/\.yaml//g; s/, $//' <<<"$presets")."
fi
misfit=$(fits_family llava-1.5 duet-192 "$preset" "${MODEL:-}" "${SCALE_TO_DEPTH:-False}")
if [ -n "$misfit" ]; then refuse "$misfit"; fi
for name in DRY_RUN EVALUATE CHECK; do
    if [ -n "${!name:-}" ]; then one_of "$name" "${!name}" 0 1; fi
done
output=${OUTPUT:-./checkpoints/reproduce/llava-v1.5-7b-$preset}
check_steps OUTPUT "$output"
python=${PYTHON:-python}
if [ "${DRY_RUN:-0}" != 1 ]; then runnable PYTHON "$python"; fi
pretrain_data=${PRETRAIN_DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}
pretrain_images=${PRETRAIN_IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}
finetune_data=${FINETUNE_DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}
finetune_images=${FINETUNE_IMAGE_FOLDER:-./playground/data}
eval_folder=${EVAL_FOLDER:-./playground/data/eval}
BENCHMARKS=pope,sqa,textvqa,mme,gqa # those of the paper's table

# set_phase PREFIX SETTING...: sets phase to the words that give a recipe its environment: those of SETTINGS that have a
# value, then the variables that have the prefix, then the settings named here.
set_phase() {
    local prefix=$1 name
    shift
    phase=(env)
    for name in "${SETTINGS[@]}"; do
        if [ -n "${!name:-}" ]; then phase+=("$name=${!name}"); fi
    done
    while read -r name; do
        if [ "$name" != "$prefix" ]; then phase+=("${name#"$prefix"}=${!name}"); fi
    done < <(compgen -e "$prefix" || true)
    phase+=("COMPRESSION=$preset" "$@")
}

# run_step NAME TARGET COMMAND...: as step; with DRY_RUN=1 prints the command, of a recipe the resolved one.
run_step() {
    if [ "${DRY_RUN:-0}" != 1 ]; then
        step "$@"
        return
    fi
    printf '# %s: %s\n' "$1" "$2"
    shift 2
    if [ "$1" = env ]; then "$@"; else print_command "$@"; fi
}

# check_data NAME VERSION DATA IMAGES: what the check finds has no say in whether the training is done already.
check_data() {
    local chain=${chain:-} report="$output/check-$2.json"
    if [ "${CHECK:-1}" = 0 ]; then return; fi
    run_step "$1" "$report" "$python" -m llava.data.check --data-path "$3" --image-folder "$4" --version "$2" \
        --image-opening "$IMAGE_OPENING" --max-bad-share "${MAX_BAD_SHARE:-0}" --report "$report"
}

# check_benchmarks: a missing file is cheaper to find before the training than behind it.
check_benchmarks() {
    if [ "${CHECK:-1}" = 0 ]; then return; fi
    local command=("$python" -m llava.eval.data --check --benchmarks "$BENCHMARKS" --eval-folder "$eval_folder")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        echo "# Benchmarks"
        print_command "${command[@]}"
    elif [ ! -e "$output/results.json" ]; then
        "${command[@]}" || die "benchmarks are not complete; see above. EVALUATE=0 trains without evaluating, CHECK=0 without looking."
    fi
}

# check_phase COMMAND...: what a recipe refuses is cheaper to hear before the check of the data than behind it.
check_phase() {
    local said
    said=$(DRY_RUN=1 "$@" 2>&1 >/dev/null) || {
        printf '%s\n' "$said" >&2
        exit 2
    }
}

set_phase PRETRAIN_ "DATA_PATH=$pretrain_data" "IMAGE_FOLDER=$pretrain_images" "OUTPUT_DIR=$output/pretrain"
pretrain=("${phase[@]}" bash scripts/v1_5/pretrain.sh)
set_phase FINETUNE_ "DATA_PATH=$finetune_data" "IMAGE_FOLDER=$finetune_images" "OUTPUT_DIR=$output/finetune" \
    "ADAPTER=$output/pretrain/mm_projector.bin"
finetune=("${phase[@]}" bash scripts/v1_5/finetune.sh)
check_phase "${pretrain[@]}"
check_phase "${finetune[@]}"

if [ "${DRY_RUN:-0}" != 1 ]; then begin_steps "$output" "$(cksum <"configs/compression/$preset.yaml")" keep; fi
if [ "${EVALUATE:-1}" != 0 ]; then check_benchmarks; fi
check_data "Data of phase 1" plain "$pretrain_data" "$pretrain_images"
check_data "Data of phase 2" v1 "$finetune_data" "$finetune_images"
run_step "Phase 1, projector" "$output/pretrain" "${pretrain[@]}"
run_step "Phase 2, instruction tuning" "$output/finetune" "${finetune[@]}"

if [ "${EVALUATE:-1}" != 0 ]; then
    run_step "Evaluation" "$output/results.json" "$python" -m llava.eval.run --model-path "$output/finetune" \
        --benchmarks "$BENCHMARKS" --eval-folder "$eval_folder" --out "$output/results.json"
fi
table=("$python" scripts/reproduce_table.py --preset "$preset" --folder "$output")
if [ "${DRY_RUN:-0}" = 1 ]; then
    echo "# Table"
    print_command "${table[@]}"
else
    "${table[@]}"
fi
