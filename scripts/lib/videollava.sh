# shellcheck shell=bash
# What the recipes of Video-LLaVA share, after scripts/lib/recipe.sh, whose settings have these defaults here (those of
# the released program):
#
#   COMPRESSION        preset or YAML file; empty: what the model has                  video-960
#   IMAGE_TOWER        LanguageBind model for images, in place of VISION_TOWER         LanguageBind/LanguageBind_Image
#   VIDEO_TOWER        LanguageBind model for videos                                   LanguageBind/LanguageBind_Video_merge
#   DATA_ROOT          folder with the conversations, images and videos                ./playground/data/videollava
#   DATA_PATH          a file or YAML mixture in place of the phase's files in DATA_ROOT
#   IMAGE_FOLDER, VIDEO_FOLDER   where names of images and of videos start             DATA_ROOT
#   MAX_LENGTH         longest text in tokens; an image and a frame count one each     2048
#   MAX_EXPANDED_LENGTH   longest sequence once images and frames are their tokens     3072
#   VIDEO_FLIP         share of the videos that are mirrored (published: 0.5)          0

# shellcheck disable=SC2034 # recipe.sh and the recipes use the variables

# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

family=video-llava
recipes=scripts/videollava/v1_5
usual_compression=video-960
run=video-llava-7b
data_root=${DATA_ROOT:-./playground/data/videollava}

set_tower_flags() {
    tower_flags=(
        --image_tower "${IMAGE_TOWER:-LanguageBind/LanguageBind_Image}"
        --video_tower "${VIDEO_TOWER:-LanguageBind/LanguageBind_Video_merge}"
        --mm_projector_type "${PROJECTOR:-mlp2x_gelu}"
        --mm_vision_select_layer -2
        --mm_use_im_start_end False
        --mm_use_im_patch_token False
    )
}

# begin_video SUFFIX [WORD...]: as begin_recipe, with the defaults above.
begin_video() {
    if asks_for_help "${@:2}"; then
        show_help "$recipes/$(basename "$0")" scripts/lib/videollava.sh scripts/lib/recipe.sh scripts/lib/launch.sh
        exit 0
    fi
    begin_recipe "$@"
}

# set_data_flags [FILE...]: sets data_flags; FILEs are the conversations of a phase where DATA_PATH is not set, by default
# those of the second.
# shellcheck disable=SC2120 # scripts/lib/recipe.sh calls it without
set_data_flags() {
    local files=("$@")
    if [ $# = 0 ]; then files=("$data_root"/{llava_image_tune_,videochatgpt_tune_,nlp_tune}.json); fi
    if [ -n "${DATA_PATH:-}" ]; then files=("$DATA_PATH"); fi
    data_flags=(
        --data_path "${files[@]}"
        --image_folder "${IMAGE_FOLDER:-$data_root}"
        --video_folder "${VIDEO_FOLDER:-$data_root}"
        --tokenizer_model_max_length "${MAX_EXPANDED_LENGTH:-3072}"
        ${VIDEO_FLIP:+--video_flip "$VIDEO_FLIP"}
    )
}
