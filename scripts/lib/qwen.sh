# shellcheck shell=bash
# What the recipes of Qwen's models share beside scripts/lib/by_processor.sh; some settings of scripts/lib/recipe.sh have
# other defaults here, those of Qwen's own program and its script sft_7b.sh, which trains both.
#
#   EPOCHS, MAX_LENGTH                                                                 0.5, 8192 (before merging)
#   VIDEO_FPS, VIDEO_MIN_FRAMES, VIDEO_MAX_FRAMES, VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS   of videos  the processor's

# shellcheck disable=SC2034 # recipe.sh and the recipes use the variables

# shellcheck source=scripts/lib/by_processor.sh
source scripts/lib/by_processor.sh

EPOCHS=${EPOCHS:-0.5}
MAX_LENGTH=${MAX_LENGTH:-8192}

# set_qwen_media MIN_PIXELS MAX_PIXELS: sets media_flags; the numbers bound an image where the variables do not.
set_qwen_media() {
    media_flags=(
        --min_pixels "${MIN_PIXELS:-$1}"
        --max_pixels "${MAX_PIXELS:-$2}"
        ${VIDEO_FPS:+--video_fps "$VIDEO_FPS"}
        ${VIDEO_MIN_FRAMES:+--video_min_frames "$VIDEO_MIN_FRAMES"}
        ${VIDEO_MAX_FRAMES:+--video_max_frames "$VIDEO_MAX_FRAMES"}
        ${VIDEO_MIN_PIXELS:+--video_min_pixels "$VIDEO_MIN_PIXELS"}
        ${VIDEO_MAX_PIXELS:+--video_max_pixels "$VIDEO_MAX_PIXELS"}
    )
}
