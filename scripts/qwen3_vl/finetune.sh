#!/usr/bin/env bash
# Fine-tuning of Qwen3-VL: language model and mergers learn to answer; the vision tower stays as it is.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/qwen3_vl/finetune.sh
#
# Every setting is an environment variable; the defaults are those of Qwen's own script, and a budget in shares of each
# image. Those that several recipes share stand at the top of the files of scripts/lib; --help prints all of them. More
# flags of llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints the command.
# Relative paths start at the repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   OUTPUT_DIR         where the model goes                       ./checkpoints/qwen3-vl-8b-$COMPRESSION
#   TUNE_LLM, TUNE_MLP, TUNE_VISION                               True, True, False
#   LEARNING_RATE      Qwen suggests 2e-7 to 1e-6                 2e-7
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 4 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero3.json
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/qwen3_vl.sh
source scripts/lib/qwen3_vl.sh

begin_recipe "" "$@"
set_model_flags True True False
launch_training ./scripts/zero3.json 128 4 \
    "${model_flags[@]}" \
    --learning_rate "${LEARNING_RATE:-2e-7}" \
    "$@"
