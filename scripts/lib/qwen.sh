# shellcheck shell=bash
# What the recipes of Qwen's models share, after scripts/lib/recipe.sh, whose settings have these defaults here (those
# of Qwen's own program and its script sft_7b.sh):
#
#   MODEL              Qwen2.5-VL in transformers' format                 Qwen/Qwen2.5-VL-7B-Instruct
#   COMPRESSION        preset or YAML file; empty: what the model has     qwen-share-70
#   EPOCHS, MAX_LENGTH                                                    0.5, 8192 (before visual tokens are merged)
#   TUNE_LLM, TUNE_MLP, TUNE_VISION   train language model, merger, tower; see each recipe
#   MIN_PIXELS, MAX_PIXELS   of an image; 28 x 28 become one token        784, 50176 (1 and 64 tokens)
#   VIDEO_FOLDER       where the videos' names start                      IMAGE_FOLDER
#   VIDEO_FPS, VIDEO_MIN_FRAMES, VIDEO_MAX_FRAMES, VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS   of videos, which need
#                      torchvision                                        the processor's
#   PROJECTOR_LR, VISION_TOWER_LR   learning rates of merger and tower    LEARNING_RATE
#
# Templates, towers and projectors are the model's own: VERSION, VISION_TOWER, PROJECTOR and IMAGE_ASPECT do nothing.

# shellcheck disable=SC2034 # recipe.sh uses the variables

# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

family=qwen2.5-vl
recipes=scripts/qwen2_5_vl
usual_compression=qwen-share-70
usual_model=Qwen/Qwen2.5-VL-7B-Instruct
run=qwen2.5-vl-7b

set_tower_flags() { tower_flags=(); }

# begin_qwen SUFFIX [WORD...]: as begin_recipe, with the defaults above.
begin_qwen() {
    if asks_for_help "${@:2}"; then
        show_help "$recipes/$(basename "$0")" scripts/lib/qwen.sh scripts/lib/recipe.sh scripts/lib/launch.sh
        exit 0
    fi
    EPOCHS=${EPOCHS:-0.5}
    MAX_LENGTH=${MAX_LENGTH:-8192}
    begin_recipe "$@"
}

# set_qwen_flags LLM MLP VISION: sets qwen_flags; the words say what is trained where the variables do not.
set_qwen_flags() {
    qwen_flags=(
        "${common_flags[@]}"
        --tune_mm_llm "${TUNE_LLM:-$1}"
        --tune_mm_mlp "${TUNE_MLP:-$2}"
        --tune_mm_vision "${TUNE_VISION:-$3}"
        --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
        --image_folder "${IMAGE_FOLDER:-./playground/data}"
        ${VIDEO_FOLDER:+--video_folder "$VIDEO_FOLDER"}
        --min_pixels "${MIN_PIXELS:-784}"
        --max_pixels "${MAX_PIXELS:-50176}"
        ${VIDEO_FPS:+--video_fps "$VIDEO_FPS"}
        ${VIDEO_MIN_FRAMES:+--video_min_frames "$VIDEO_MIN_FRAMES"}
        ${VIDEO_MAX_FRAMES:+--video_max_frames "$VIDEO_MAX_FRAMES"}
        ${VIDEO_MIN_PIXELS:+--video_min_pixels "$VIDEO_MIN_PIXELS"}
        ${VIDEO_MAX_PIXELS:+--video_max_pixels "$VIDEO_MAX_PIXELS"}
        ${PROJECTOR_LR:+--mm_projector_lr "$PROJECTOR_LR"}
        ${VISION_TOWER_LR:+--mm_vision_tower_lr "$VISION_TOWER_LR"}
        --save_steps "${SAVE_STEPS:-500}"
    )
}
