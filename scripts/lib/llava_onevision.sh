# shellcheck shell=bash
# What the recipes of LLaVA-OneVision share, and other defaults of what stands in the files below: those of its own script
# for the last stage (scripts/train/finetune_ov.sh of LLaVA-NeXT), for which its authors take 128 devices.
#
#   MODEL              LLaVA-OneVision in transformers' format                  llava-hf/llava-onevision-qwen2-7b-ov-hf
#   COMPRESSION        preset or YAML file; empty: what the model has                  onevision-share-70
#   MAX_LENGTH, TF32                                                                   32768 (before merging), True
#   VIDEO_FRAMES       frames of each video                                            32

# shellcheck disable=SC2034 # scripts/lib/recipe.sh and the recipes use the variables

# shellcheck source=scripts/lib/by_processor.sh
source scripts/lib/by_processor.sh

family=llava-onevision
recipes=scripts/llava_onevision
usual_compression=onevision-share-70
usual_model=llava-hf/llava-onevision-qwen2-7b-ov-hf
run=llava-onevision-7b
family_help=(scripts/lib/llava_onevision.sh scripts/lib/by_processor.sh)
MAX_LENGTH=${MAX_LENGTH:-32768}
TF32=${TF32:-True}
media_flags=(--frames_upbound "${VIDEO_FRAMES:-32}" --group_by_modality_length True)

# set_usual_rates TUNED_MLP PROJECTOR TUNED_VISION TOWER [WORD...]: sets PROJECTOR_LR and VISION_TOWER_LR where they are
# not set and the part is trained, which TUNE_MLP and TUNE_VISION say, else TUNED_MLP and TUNED_VISION; flags among the
# words win. A rate of '' leaves LEARNING_RATE.
set_usual_rates() {
    local mlp vision
    mlp=$(value_of --tune_mm_mlp --tune_mm_mlp "${TUNE_MLP:-$1}" "${@:5}")
    vision=$(value_of --tune_mm_vision --tune_mm_vision "${TUNE_VISION:-$3}" "${@:5}")
    if is_true "$mlp"; then PROJECTOR_LR=${PROJECTOR_LR:-$2}; fi
    if is_true "$vision"; then VISION_TOWER_LR=${VISION_TOWER_LR:-$4}; fi
}
