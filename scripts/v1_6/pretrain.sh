#!/usr/bin/env bash
# LLaVA-NeXT, pre-training: the projector learns to caption images in crops; all else stays as it is.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_6/pretrain.sh
#
# Every setting is an environment variable; the defaults are Open-LLaVA-NeXT's, as in the released program. Those that
# all recipes share, and those that choose devices and launcher, stand at the top of scripts/lib/llava_next.sh,
# scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of them. More flags of llava/train/train_mem.py can
# follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative paths start at the
# repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          captions: JSON or YAML mixture             ./playground/data/LLaVA-Pretrain/blip_...558k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data/LLaVA-Pretrain/images
#   OUTPUT_DIR         where mm_projector.bin goes                ./checkpoints/...-$COMPRESSION-pretrain
#   VERSION            conversation template                      plain
#   IMAGE_ASPECT       anyres, anyres_max_N, pad or square        anyres
#   LEARNING_RATE      of the projector                           1e-3
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 256, at most 8 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh
# shellcheck source=scripts/lib/llava_next.sh
source scripts/lib/llava_next.sh

begin_recipe -pretrain "$@"
launch_training ./scripts/zero2.json 256 8 \
    "${common_flags[@]}" \
    "${crop_flags[@]}" \
    --version "${VERSION:-plain}" \
    --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
    --image_aspect_ratio "$IMAGE_ASPECT" \
    --tune_mm_mlp_adapter True \
    --learning_rate "${LEARNING_RATE:-1e-3}" \
    --save_steps "${SAVE_STEPS:-500}" \
    "$@"
