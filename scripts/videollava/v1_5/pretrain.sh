#!/usr/bin/env bash
# Video-LLaVA, pre-training: the projector learns to describe images and videos; all else stays as it is.
#
#   DATA_ROOT=... bash scripts/videollava/v1_5/pretrain.sh
#
# Every setting is an environment variable; the defaults are the released program's for eight GPUs. Those that all
# recipes share, and those that choose devices and launcher, stand at the top of scripts/lib/videollava.sh,
# scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of them. More flags of llava/train/train_mem.py can
# follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative paths start at the
# repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          a file or YAML mixture in place of llava_image_.json and valley_.json in DATA_ROOT
#   IMAGE_FOLDER, VIDEO_FOLDER   where names of images and of videos start   DATA_ROOT
#   OUTPUT_DIR         where mm_projector.bin goes                ./checkpoints/video-llava-7b-$COMPRESSION-pretrain
#   VERSION            conversation template                      v1, unlike LLaVA's pre-training
#   IMAGE_ASPECT       pad or square                              square
#   LEARNING_RATE      of the projector                           1e-3
#   SAVE_STEPS         steps between checkpoints (published: 24000)   500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 256, at most 32 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/videollava.sh
source scripts/lib/videollava.sh

begin_video -pretrain "$@"
set_data_flags "$data_root"/{llava_image_,valley_}.json
launch_training ./scripts/zero2.json 256 32 \
    "${common_flags[@]}" \
    "${data_flags[@]}" \
    --version "${VERSION:-v1}" \
    --image_aspect_ratio "${IMAGE_ASPECT:-square}" \
    --tune_mm_mlp_adapter True \
    --learning_rate "${LEARNING_RATE:-1e-3}" \
    --save_steps "${SAVE_STEPS:-500}" \
    "$@"
