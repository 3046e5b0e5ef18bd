#!/usr/bin/env bash
# LLaVA-NeXT, fine-tuning with LoRA: a low-rank adapter of the language model, and the projector; all else stays.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_6/finetune_lora.sh
#
# Every setting is an environment variable; the defaults are Open-LLaVA-NeXT's, as in the released program. Those that
# all recipes share, and those that choose devices and launcher, stand at the top of scripts/lib/llava_next.sh,
# scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of them. More flags of llava/train/train_mem.py can
# follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative paths start at the
# repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/open-llava-next_instruct_mix1M.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   ADAPTER            mm_projector.bin of the pre-training       ./checkpoints/...-pretrain/mm_projector.bin
#   OUTPUT_DIR         where adapter and projector go             ./checkpoints/llava-v1.6-vicuna-7b-$COMPRESSION-lora
#   VERSION            conversation template                      what MODEL's config.json records, else v1
#   IMAGE_ASPECT       anyres, anyres_max_N, pad or square        anyres
#   LEARNING_RATE      of the low-rank adapter                    2e-4
#   PROJECTOR_LR       learning rate of the projector             2e-5
#   TOWER_LR           trains the vision tower too, at this rate  not trained
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 4 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
#   LORA_R, LORA_ALPHA, LORA_DROPOUT                              128, 256, 0.05
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh
# shellcheck source=scripts/lib/llava_next.sh
source scripts/lib/llava_next.sh

begin_recipe -lora "$@"
DATA_PATH=${DATA_PATH:-./playground/data/open-llava-next_instruct_mix1M.json}
set_finetune_flags
set_lora_flags
launch_training ./scripts/zero2.json 128 4 \
    "${finetune_flags[@]}" \
    "${lora_flags[@]}" \
    "${crop_flags[@]}" \
    --pretrain_mm_mlp_adapter "${ADAPTER:-./checkpoints/$RUN-pretrain/mm_projector.bin}" \
    ${TOWER_LR:+--mm_vision_tower_lr "$TOWER_LR"} \
    "$@"
