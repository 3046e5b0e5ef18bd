#!/usr/bin/env bash
# One row of the paper's tables: checks the data, trains under one budget, evaluates, and prints what came out beside what
# the paper reports (configs/paper).
#
#   PRETRAIN_DATA_PATH=... PRETRAIN_IMAGE_FOLDER=... FINETUNE_DATA_PATH=... FINETUNE_IMAGE_FOLDER=... \
#       bash scripts/reproduce.sh duet-192
#   TRAIN=0 bash scripts/reproduce.sh video-136
#
# The argument is a preset of configs/compression. It decides which models are trained, asked and compared (plans:
# scripts/lib/plans.sh):
#
#   duet-*, ...      LLaVA-1.5: recipes of scripts/v1_5; POPE, SQA, TextVQA, MME, GQA; Table 3, with TRAIN=0 Table 1
#   next-*, ...      LLaVA-NeXT: scripts/v1_6; the same and SEED; Tables 9 and 10
#   video-*          Video-LLaVA: scripts/videollava/v1_5; TGIF, MSVD and MSRVTT, which a judge grades; Table 4
#   qwen-*, ...      Qwen2.5-VL: scripts/qwen2_5_vl, no pre-training; POPE, SQA, TextVQA, MME, GQA; Table 2
#   qwen3-*          Qwen3-VL: scripts/qwen3_vl, no pre-training; the same; the paper has no row
#   onevision-*      LLaVA-OneVision: scripts/llava_onevision, no pre-training; the same; the paper has no row
#
# The paper trains LLaVA-1.5 alone; its rows of the others are the released models, compressed at inference, which TRAIN=0
# reproduces. Of Qwen3-VL and LLaVA-OneVision it reports nothing: they are trained and evaluated, and the scores stand
# alone. A step that is done is skipped, so the same command goes on at the step that failed or was interrupted; a phase
# that was begun under other settings is left alone and the script says so.
#
# The phases are recipes and read their environment variables (bash scripts/v1_5/finetune.sh --help). For one phase
# alone: PRETRAIN_ or FINETUNE_ in front of the name, as in PRETRAIN_BATCH_SIZE=16. Besides:
#
#   FAMILY             of a preset for several, such as none: llava-1.5, llava-next, video-llava, qwen2.5-vl,
#                      qwen3-vl, llava-onevision                    the first that the preset is made for
#   TRAIN              0 asks a model as it was released            1
#   MODEL              what training starts from, or is asked       the recipe's; the released model
#   SCALE_TO_DEPTH     True scales the preset to the model's depth  False
#   OUTPUT             where everything goes: a new folder, an empty one, or one of an earlier run
#                                                                   ./checkpoints/reproduce/MODEL-PRESET
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
# shellcheck source=scripts/lib/plans.sh
source scripts/lib/plans.sh

# Variables that decide what is learned. A phase that was begun under others is not continued.
SETTINGS=(
    MODEL VISION_TOWER PROJECTOR VERSION IMAGE_ASPECT IMAGE_OPENING LEARNING_RATE WARMUP_RATIO SCHEDULER WEIGHT_DECAY
    EPOCHS MAX_STEPS MAX_LENGTH GLOBAL_BATCH_SIZE ACCUMULATION BF16 FP16 SEED SCALE_TO_DEPTH
    IMAGE_TOWER VIDEO_TOWER PROJECTOR_LR TOWER_LR MERGE_TYPE DATA_ROOT MAX_EXPANDED_LENGTH
    MIN_PIXELS MAX_PIXELS TUNE_LLM TUNE_MLP TUNE_VISION VISION_TOWER_LR PINPOINTS VIDEO_FLIP
    VIDEO_FPS VIDEO_FRAMES VIDEO_MIN_FRAMES VIDEO_MAX_FRAMES VIDEO_MIN_PIXELS VIDEO_MAX_PIXELS
)

# The published numbers come from models that saw images as LLaVA opens them, rotation marks left aside.
IMAGE_OPENING=${IMAGE_OPENING:-llava}

preset=${1:-}
if [ "$#" -ne 1 ] || [[ $preset == */* ]] || [ ! -f "configs/compression/$preset.yaml" ]; then
    presets=$(CDPATH='' cd configs/compression && printf '%s, ' *.yaml)
    refuse "the preset is '$*'; give one of $(sed 's/\.yaml//g; s/, $//' <<<"$presets")."
fi
for name in DRY_RUN EVALUATE CHECK TRAIN; do
    if [ -n "${!name:-}" ]; then one_of "$name" "${!name}" 0 1; fi
done
boolean SCALE_TO_DEPTH "${SCALE_TO_DEPTH:-False}"
family=$(family_of_preset "$preset")
plan_of "$family"
if [ "${TRAIN:-1}" = 0 ]; then phases=(); fi
asked=${MODEL:-}
if [ "${TRAIN:-1}" = 0 ]; then asked=${MODEL:-$released}; fi
misfit=$(fits_family "$family" "$usual_preset" "$preset" "$asked" "${SCALE_TO_DEPTH:-False}")
if [ -n "$misfit" ]; then refuse "$misfit"; fi
if [ "${TRAIN:-1}" = 0 ] && [ "${EVALUATE:-1}" = 0 ]; then refuse "TRAIN=0 and EVALUATE=0 leave nothing to do; leave one out."; fi
for phase in "${phases[@]}"; do
    if [ ! -f "$recipes/$phase.sh" ]; then
        refuse "there is no $recipes/$phase.sh to train a $(name_of_family "$family") with; TRAIN=0 asks the released model."
    fi
done
output=${OUTPUT:-./checkpoints/reproduce/$model_name-$preset}
if [ "${TRAIN:-1}" = 0 ]; then output=${OUTPUT:-./checkpoints/reproduce/$model_name-released-$preset}; fi
check_steps OUTPUT "$output"
python=${PYTHON:-python}
if [ "${DRY_RUN:-0}" != 1 ]; then runnable PYTHON "$python"; fi
if [ -n "${PRETRAIN_DATA_PATH:-}" ]; then pretrain_data=("$PRETRAIN_DATA_PATH"); fi
pretrain_images=${PRETRAIN_IMAGE_FOLDER:-$pretrain_images}
pretrain_videos=${PRETRAIN_VIDEO_FOLDER:-$pretrain_videos}
if [ -n "${FINETUNE_DATA_PATH:-}" ]; then finetune_data=("$FINETUNE_DATA_PATH"); fi
finetune_images=${FINETUNE_IMAGE_FOLDER:-$finetune_images}
finetune_videos=${FINETUNE_VIDEO_FOLDER:-$finetune_videos}
eval_folder=${EVAL_FOLDER:-./playground/data/eval}
scaling=()
if is_true "${SCALE_TO_DEPTH:-False}"; then scaling=(--scale-to-depth); fi

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

# check_data NAME PHASE VERSION IMAGES VIDEOS DATA...: what the check finds has no say in whether the training is done
# already.
check_data() {
    local chain=${chain:-} report="$output/check-$2.json"
    if [ "${CHECK:-1}" = 0 ]; then return; fi
    run_step "$1" "$report" "$python" -m llava.data.check --data-path "${@:6}" --image-folder "$4" \
        "${check_flags[@]}" ${5:+--video-folder "$5"} ${3:+--version "$3"} --image-opening "$IMAGE_OPENING" \
        --max-bad-share "${MAX_BAD_SHARE:-0}" --report "$report"
}

# check_benchmarks: a missing file is cheaper to find before the training than behind it.
check_benchmarks() {
    if [ "${CHECK:-1}" = 0 ]; then return; fi
    local command=("$python" -m llava.eval.data --check --benchmarks "$benchmarks" --eval-folder "$eval_folder")
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

# phase_of NAME: sets phase to the command of a recipe. Several files of data are the recipe's own default.
phase_of() {
    local more=()
    if [ "$1" = pretrain ]; then
        if [ "${#pretrain_data[@]}" = 1 ]; then more=("DATA_PATH=${pretrain_data[0]}"); fi
        set_phase PRETRAIN_ "${more[@]}" "IMAGE_FOLDER=$pretrain_images" \
            ${pretrain_videos:+"VIDEO_FOLDER=$pretrain_videos"} "OUTPUT_DIR=$output/pretrain"
    else
        if [ "${#finetune_data[@]}" = 1 ]; then more=("DATA_PATH=${finetune_data[0]}"); fi
        set_phase FINETUNE_ "${more[@]}" "IMAGE_FOLDER=$finetune_images" \
            ${finetune_videos:+"VIDEO_FOLDER=$finetune_videos"} "OUTPUT_DIR=$output/finetune"
        if [ "${#phases[@]}" -gt 1 ]; then phase+=("ADAPTER=$output/pretrain/mm_projector.bin"); fi
    fi
    phase+=(bash "$recipes/$1.sh")
}

for name in "${phases[@]}"; do
    phase_of "$name"
    check_phase "${phase[@]}"
done

if [ "${DRY_RUN:-0}" != 1 ]; then begin_steps "$output" "$(cksum <"configs/compression/$preset.yaml")" keep; fi
if [ "${EVALUATE:-1}" != 0 ]; then check_benchmarks; fi
number=0
for name in "${phases[@]}"; do
    number=$((number + 1))
    if [ "$name" = pretrain ]; then
        check_data "Data of phase $number" plain "$pretrain_version" \
            "$pretrain_images" "$pretrain_videos" "${pretrain_data[@]}"
    else
        check_data "Data of phase $number" v1 "$finetune_version" \
            "$finetune_images" "$finetune_videos" "${finetune_data[@]}"
    fi
done
number=0
for name in "${phases[@]}"; do
    number=$((number + 1)) what='instruction tuning'
    if [ "$name" = pretrain ]; then what=projector; fi
    phase_of "$name"
    run_step "Phase $number, $what" "$output/$name" "${phase[@]}"
done

evaluated=(--model-path "$output/finetune")
if [ "${TRAIN:-1}" = 0 ]; then evaluated=(--model-path "$asked" --compression "$preset" "${scaling[@]}" --image-opening "$IMAGE_OPENING"); fi
if [ "${EVALUATE:-1}" != 0 ]; then
    run_step "Evaluation" "$output/results.json" "$python" -m llava.eval.run "${evaluated[@]}" \
        --benchmarks "$benchmarks" --eval-folder "$eval_folder" --out "$output/results.json"
fi
paper=$trained_table
if [ "${TRAIN:-1}" = 0 ]; then paper=$released_table; fi
table=("$python" scripts/reproduce_table.py --preset "$preset" --folder "$output" --table "$paper" --phases "${phases[@]}")
if [ "${DRY_RUN:-0}" = 1 ]; then
    echo "# Table"
    print_command "${table[@]}"
else
    "${table[@]}"
fi
