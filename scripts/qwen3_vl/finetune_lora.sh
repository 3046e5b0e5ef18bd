#!/usr/bin/env bash
# Fine-tuning of Qwen3-VL with a low-rank adapter on the attention of its language model; all else stays as it is.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/qwen3_vl/finetune_lora.sh
#
# Every setting is an environment variable; the adapter is that of Qwen's own program. Those that several recipes share
# stand at the top of the files of scripts/lib; --help prints all of them. More flags of llava/train/train_mem.py can
# follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative paths start at the
# repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   OUTPUT_DIR         where the adapter goes                     ./checkpoints/qwen3-vl-8b-$COMPRESSION-lora
#   TUNE_LLM, TUNE_MLP, TUNE_VISION   beside the adapter          False, False, False
#   LEARNING_RATE      of the adapter; LLaVA's                    2e-4
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 128, at most 4 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero3.json
#   LORA_R, LORA_ALPHA, LORA_DROPOUT, LORA_TARGETS                64, 128, 0, q,k,v,o
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/qwen3_vl.sh
source scripts/lib/qwen3_vl.sh

begin_recipe -lora "$@"
set_model_flags False False False
set_adapter_flags 64 128 0 q,k,v,o
launch_training ./scripts/zero3.json 128 4 \
    "${model_flags[@]}" \
    "${adapter_flags[@]}" \
    --learning_rate "${LEARNING_RATE:-2e-4}" \
    "$@"
