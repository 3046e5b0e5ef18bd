# shellcheck shell=bash
# What the recipes of models share whose inputs their own processor makes (Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision), after
# scripts/lib/recipe.sh. The family's file sets media_flags, flags of its images and videos.
#
#   TUNE_LLM, TUNE_MLP, TUNE_VISION   train language model, projector (Qwen's mergers), tower; see each recipe
#   VIDEO_FOLDER       where the videos' names start; videos need torchvision          IMAGE_FOLDER
#   PROJECTOR_LR, VISION_TOWER_LR   learning rates of projector and tower              LEARNING_RATE
#
# Templates, towers and projectors are the model's own: VERSION, VISION_TOWER, PROJECTOR and IMAGE_ASPECT do nothing.

# shellcheck disable=SC2034 # recipe.sh and the recipes use the variables

# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

media_flags=()

set_tower_flags() { tower_flags=(); }

# set_model_flags LLM MLP VISION: sets model_flags; the words say what is trained where the variables do not.
set_model_flags() {
    boolean TUNE_LLM "${TUNE_LLM:-$1}"
    boolean TUNE_MLP "${TUNE_MLP:-$2}"
    boolean TUNE_VISION "${TUNE_VISION:-$3}"
    model_flags=(
        "${common_flags[@]}"
        --tune_mm_llm "${TUNE_LLM:-$1}"
        --tune_mm_mlp "${TUNE_MLP:-$2}"
        --tune_mm_vision "${TUNE_VISION:-$3}"
        --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
        --image_folder "${IMAGE_FOLDER:-./playground/data}"
        ${VIDEO_FOLDER:+--video_folder "$VIDEO_FOLDER"}
        "${media_flags[@]}"
        ${PROJECTOR_LR:+--mm_projector_lr "$PROJECTOR_LR"}
        ${VISION_TOWER_LR:+--mm_vision_tower_lr "$VISION_TOWER_LR"}
        --save_steps "${SAVE_STEPS:-500}"
    )
}

# set_adapter_flags RANK ALPHA DROPOUT MAPS: sets adapter_flags, those of a low-rank adapter where the variables do not.
set_adapter_flags() {
    adapter_flags=(
        --lora_enable True
        --lora_r "${LORA_R:-$1}"
        --lora_alpha "${LORA_ALPHA:-$2}"
        --lora_dropout "${LORA_DROPOUT:-$3}"
        --lora_target_modules "${LORA_TARGETS:-$4}"
    )
}
