#!/usr/bin/env bash
# Fine-tuning of LLaVA-OneVision with a low-rank adapter on its language model; the projector learns, too.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/llava_onevision/finetune_lora.sh
#
# Every setting is an environment variable; the adapter is that of LLaVA-1.5's recipe, for its authors have none. Those
# that several recipes share stand at the top of the files of scripts/lib; --help prints all of them. More flags of
# llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints the command. Relative
# paths start at the repository. The same command again resumes a run that was interrupted.
#
#   DATA_PATH          conversations: JSON or YAML mixture        ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start              ./playground/data
#   OUTPUT_DIR         where the adapter goes                     ./checkpoints/llava-onevision-7b-$COMPRESSION-lora
#   TUNE_LLM, TUNE_MLP, TUNE_VISION   beside the adapter          False, True, False
#   LEARNING_RATE      of the adapter                             2e-4
#   PROJECTOR_LR, VISION_TOWER_LR   where they are trained        2e-5, 2e-6
#   SAVE_STEPS         steps between checkpoints                  500
#   GLOBAL_BATCH_SIZE, BATCH_SIZE                                 256, 1 a device
#   DEEPSPEED_CONFIG   ZeRO settings                              ./scripts/zero3.json
#   LORA_R, LORA_ALPHA, LORA_DROPOUT                              128, 256, 0.05
#   LORA_TARGETS       linear maps that get one                   q,k,v,o,gate,up,down: all of a layer
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/llava_onevision.sh
source scripts/lib/llava_onevision.sh

begin_recipe -lora "$@"
set_usual_rates True 2e-5 False 2e-6 "$@"
set_model_flags False True False
set_adapter_flags 128 256 0.05 q,k,v,o,gate,up,down
launch_training ./scripts/zero3.json 256 1 \
    "${model_flags[@]}" \
    "${adapter_flags[@]}" \
    --learning_rate "${LEARNING_RATE:-2e-4}" \
    "$@"
