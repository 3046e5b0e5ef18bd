#!/usr/bin/env bash
# Pre-training: the projector learns to caption; language model and vision tower stay as they are.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_5/pretrain.sh
#
# Every setting is an environment variable; the defaults are the paper's. Those that all recipes share, and those that
# choose devices and launcher, stand at the top of scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of
# them. More flags of llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints
# the command. Relative paths start at the repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          captions: JSON or YAML mixture             ./playground/data/LLaVA-Pretrain/blip_...558k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data/LLaVA-Pretrain/images
#   OUTPUT_DIR         where mm_projector.bin goes                ./checkpoints/llava-v1.5-7b-$COMPRESSION-pretrain
#   VERSION            conversation template                      plain
#   IMAGE_ASPECT       pad or square                              square
#   LEARNING_RATE      of the projector                           1e-3
#   SAVE_STEPS         steps between checkpoints (LLaVA: 24000)   500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 256, at most 32 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

begin_recipe -pretrain "$@"
launch_training ./scripts/zero2.json 256 32 \
    "${common_flags[@]}" \
    --version "${VERSION:-plain}" \
    --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
    --image_aspect_ratio "${IMAGE_ASPECT:-square}" \
    --tune_mm_mlp_adapter True \
    --learning_rate "${LEARNING_RATE:-1e-3}" \
    --save_steps "${SAVE_STEPS:-500}" \
    "$@"
