#!/usr/bin/env bash
# Video-LLaVA, fine-tuning: language model and projector learn to answer; both towers stay as they are.
#
#   DATA_ROOT=... bash scripts/videollava/v1_5/finetune.sh
#
# Every setting is an environment variable; the defaults are the released program's for eight GPUs. Those that all
# recipes share, and those that choose devices and launcher, stand at the top of scripts/lib/videollava.sh,
# scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of them. More flags of llava/train/train_mem.py can
# follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative paths start at the
# repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          a file or YAML mixture in place of llava_image_tune_.json, videochatgpt_tune_.json, nlp_tune.json
#   IMAGE_FOLDER, VIDEO_FOLDER   where names of images and of videos start   DATA_ROOT
#   ADAPTER            mm_projector.bin of the pre-training       ./checkpoints/...-pretrain/mm_projector.bin
#   OUTPUT_DIR         where the model goes                       ./checkpoints/video-llava-7b-$COMPRESSION
#   VERSION            conversation template                      what MODEL's config.json records, else v1
#   IMAGE_ASPECT       pad or square                              pad
#   LEARNING_RATE      of language model and projector            2e-5
#   SAVE_STEPS         steps between checkpoints (published: 500; Video-LLaVA: 50000)   500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 16 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/videollava.sh
source scripts/lib/videollava.sh

begin_video "" "$@"
set_finetune_flags
launch_training ./scripts/zero2.json 128 16 \
    "${finetune_flags[@]}" \
    --pretrain_mm_mlp_adapter "${ADAPTER:-./checkpoints/$RUN-pretrain/mm_projector.bin}" \
    --learning_rate "${LEARNING_RATE:-2e-5}" \
    "$@"
