#!/usr/bin/env bash
# Fine-tuning a finished LLaVA on data of your own with LoRA; its projector comes with it and is trained too.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_5/finetune_task_lora.sh
#
# Every setting is an environment variable; the defaults are the paper's. Those that all recipes share, and those that
# choose devices and launcher, stand at the top of scripts/lib/recipe.sh and scripts/lib/launch.sh; --help prints all of
# them. More flags of llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints
# the command. Relative paths start at the repository. The same command again resumes a run that was interrupted.
#
#   MODEL              LLaVA checkpoint to start from             liuhaotian/llava-v1.5-7b
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   OUTPUT_DIR         where adapter and projector go             ./checkpoints/llava-v1.5-7b-$COMPRESSION-task-lora
#   VERSION            conversation template                      what MODEL's config.json records, else v1
#   IMAGE_ASPECT       pad or square                              pad
#   LEARNING_RATE      of the low-rank adapter                    2e-4
#   SAVE_STEPS         steps between checkpoints (LLaVA: 50000)   500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 16 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero3.json
#   LORA_R, LORA_ALPHA, LORA_DROPOUT                              128, 256, 0.05
#   PROJECTOR_LR       learning rate of the projector             2e-5
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

MODEL=${MODEL:-liuhaotian/llava-v1.5-7b}
begin_recipe -task-lora "$@"
set_finetune_flags
set_lora_flags
launch_training ./scripts/zero3.json 128 16 \
    "${finetune_flags[@]}" \
    "${lora_flags[@]}" \
    "$@"
