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

COMPRESSION="${COMPRESSION:-duet-192}"
COMPRESSION_NAME="$(basename "$COMPRESSION" .yaml)"
MODEL="${MODEL:-lmsys/vicuna-7b-v1.5}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
DATA_PATH="${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-./playground/data}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-v1.5-7b-$COMPRESSION_NAME}"
ADAPTER="${ADAPTER:-./checkpoints/llava-v1.5-7b-$COMPRESSION_NAME-pretrain/mm_projector.bin}"
LAUNCHER="${LAUNCHER:-deepspeed}"
NUM_DEVICES="${NUM_DEVICES:-}"

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case "$LAUNCHER" in
    deepspeed)
        command=(deepspeed ${NUM_DEVICES:+--num_gpus "$NUM_DEVICES"} llava/train/train_mem.py
            --deepspeed "${DEEPSPEED_CONFIG:-./scripts/zero3.json}") ;;
    torchrun) command=(torchrun --nproc_per_node "${NUM_DEVICES:-gpu}" llava/train/train_mem.py) ;;
    python) command=("${PYTHON:-python}" llava/train/train_mem.py) ;;
    *) echo "LAUNCHER is '$LAUNCHER'; accepted are deepspeed, torchrun, python." >&2; exit 2 ;;
esac

command+=(
    --model_name_or_path "$MODEL"
    --version "${VERSION:-v1}"
    --compression "$COMPRESSION"
    --data_path "$DATA_PATH"
    --image_folder "$IMAGE_FOLDER"
    --image_aspect_ratio "${IMAGE_ASPECT:-pad}"
    --vision_tower "$VISION_TOWER"
    --mm_projector_type "${PROJECTOR:-mlp2x_gelu}"
    --pretrain_mm_mlp_adapter "$ADAPTER"
    --group_by_modality_length True
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --bf16 "${BF16:-True}"
    --tf32 "${TF32:-False}"
    --use_cpu "${USE_CPU:-False}"
    --output_dir "$OUTPUT_DIR"
    --num_train_epochs "${EPOCHS:-1}"
    --max_steps "${MAX_STEPS:--1}"
    --per_device_train_batch_size "${BATCH_SIZE:-16}"
    --gradient_accumulation_steps "${ACCUMULATION:-1}"
    --eval_strategy no
    --save_strategy steps
    --save_steps "${SAVE_STEPS:-50000}"
    --save_total_limit "${SAVE_LIMIT:-1}"
    --learning_rate "${LEARNING_RATE:-2e-5}"
    --weight_decay "${WEIGHT_DECAY:-0.}"
    --warmup_steps "${WARMUP_RATIO:-0.03}"
    --lr_scheduler_type "${SCHEDULER:-cosine}"
    --logging_steps "${LOGGING_STEPS:-1}"
    --model_max_length "${MAX_LENGTH:-2048}"
    --activation_checkpointing "${GRADIENT_CHECKPOINTING:-True}"
    --dataloader_num_workers "${WORKERS:-4}"
    --seed "${SEED:-42}"
    --report_to "${REPORT_TO:-none}"
    "$@"
)

if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
exec "${command[@]}"
