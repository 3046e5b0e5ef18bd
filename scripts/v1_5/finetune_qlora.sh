#!/usr/bin/env bash
# Fine-tuning with QLoRA: as finetune_lora.sh, over a language model held in 4 bits; tower and projector keep theirs.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_5/finetune_qlora.sh
#
# Every setting is an environment variable; the defaults are the paper's. Those that all recipes share, and those that
# choose devices and launcher, stand at the top of scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of
# them. More flags of llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints
# the command. Relative paths start at the repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   ADAPTER            mm_projector.bin of the pre-training       ./checkpoints/...-pretrain/mm_projector.bin
#   OUTPUT_DIR         where adapter and projector go             ./checkpoints/llava-v1.5-7b-$COMPRESSION-qlora
#   VERSION            conversation template                      what MODEL's config.json records, else v1
#   IMAGE_ASPECT       pad or square                              pad
#   LEARNING_RATE      of the low-rank adapter                    2e-4
#   SAVE_STEPS         steps between checkpoints (LLaVA: 50000)   500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 16 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero2.json
#   LORA_R, LORA_ALPHA, LORA_DROPOUT                              128, 256, 0.05
#   PROJECTOR_LR       learning rate of the projector             2e-5
#   BITS               4 or 8                                     4
#   DOUBLE_QUANT       4 bits: quantise the scales as well        True
#   QUANT_TYPE         4 bits: nf4 or fp4                         nf4
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

begin_recipe -qlora "$@"
set_finetune_flags
set_lora_flags
launch_training ./scripts/zero2.json 128 16 \
    "${finetune_flags[@]}" \
    "${lora_flags[@]}" \
    --bits "${BITS:-4}" \
    --double_quant "${DOUBLE_QUANT:-True}" \
    --quant_type "${QUANT_TYPE:-nf4}" \
    --pretrain_mm_mlp_adapter "${ADAPTER:-./checkpoints/$RUN-pretrain/mm_projector.bin}" \
    "$@"
