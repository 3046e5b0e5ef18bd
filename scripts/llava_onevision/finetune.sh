#!/usr/bin/env bash
# Fine-tuning of LLaVA-OneVision: all of it learns to answer, the vision tower at a fifth of the rate.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/llava_onevision/finetune.sh
#
# Every setting is an environment variable; the defaults are those of its authors' script, and a budget in shares of each
# crop. Those that several recipes share stand at the top of the files of scripts/lib; --help prints all of them. More
# flags of llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints the command.
# Relative paths start at the repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   OUTPUT_DIR         where the model goes                       ./checkpoints/llava-onevision-7b-$COMPRESSION
#   TUNE_LLM, TUNE_MLP, TUNE_VISION                               True, True, True
#   LEARNING_RATE      of language model and projector            1e-5
#   VISION_TOWER_LR    of the tower, where it is trained          2e-6
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 256, 1 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero3.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/llava_onevision.sh
source scripts/lib/llava_onevision.sh

begin_recipe "" "$@"
set_usual_rates True "" True 2e-6 "$@"
set_model_flags True True True
launch_training ./scripts/zero3.json 256 1 \
    "${model_flags[@]}" \
    --learning_rate "${LEARNING_RATE:-1e-5}" \
    "$@"
