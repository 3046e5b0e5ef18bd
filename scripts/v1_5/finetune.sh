#!/usr/bin/env bash
# Fine-tuning: language model and projector learn to answer; the vision tower stays as it is.
#
#   DATA_PATH=... IMAGE_FOLDER=... bash scripts/v1_5/finetune.sh
#
# Every setting is an environment variable; defaults are the paper's for 8 devices. More flags of
# llava/train/train_mem.py can follow on the command line and win over these. DRY_RUN=1 only prints the command.
#
#   COMPRESSION        preset or YAML file                                    duet-192
#   MODEL              language model                                         lmsys/vicuna-7b-v1.5
#   VISION_TOWER       CLIP model                                             openai/clip-vit-large-patch14-336
#   PROJECTOR          shape of the projector                                 mlp2x_gelu
#   ADAPTER            mm_projector.bin of the pre-training                   ./checkpoints/...-$COMPRESSION-pretrain/...
#   DATA_PATH          conversations, JSON                                    ./playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       where their image names start                          ./playground/data
#   OUTPUT_DIR         where the model goes                                   ./checkpoints/llava-v1.5-7b-$COMPRESSION
#   VERSION            conversation template                                  v1
#   BATCH_SIZE         samples of one device in one forward pass              16
#   ACCUMULATION       forward passes of one optimizer step                   1
#   LEARNING_RATE, WARMUP_RATIO, SCHEDULER, WEIGHT_DECAY                      2e-5, 0.03, cosine, 0.
#   EPOCHS, MAX_STEPS  length of the run; MAX_STEPS of -1 leaves it to EPOCHS 1, -1
#   MAX_LENGTH         longest sequence in tokens                             2048
#   IMAGE_ASPECT       pad or square                                          pad
#   SAVE_STEPS, SAVE_LIMIT, LOGGING_STEPS, SEED                               50000, 1, 1, 42
#   BF16, TF32, GRADIENT_CHECKPOINTING, USE_CPU                               True, False, True, False
#   WORKERS            data loading processes of each device                  4
#   REPORT_TO          wandb, tensorboard or none                             none
#   LAUNCHER           deepspeed, torchrun or python (one device)             deepspeed
#   DEEPSPEED_CONFIG   used by the deepspeed launcher                         ./scripts/zero3.json
#   NUM_DEVICES        processes on this machine; empty: one for each GPU     (empty)
#   PYTHON             interpreter of LAUNCHER=python                         python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/launch.sh
source scripts/lib/launch.sh

COMPRESSION="${COMPRESSION:-duet-192}"
RUN="llava-v1.5-7b-$(basename "$COMPRESSION" .yaml)"

launch_training ./scripts/zero3.json \
    --version "${VERSION:-v1}" \
    --compression "$COMPRESSION" \
    --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data}" \
    --image_aspect_ratio "${IMAGE_ASPECT:-pad}" \
    --pretrain_mm_mlp_adapter "${ADAPTER:-./checkpoints/$RUN-pretrain/mm_projector.bin}" \
    --group_by_modality_length True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/$RUN}" \
    --per_device_train_batch_size "${BATCH_SIZE:-16}" \
    --learning_rate "${LEARNING_RATE:-2e-5}" \
    --save_steps "${SAVE_STEPS:-50000}" \
    "$@"
