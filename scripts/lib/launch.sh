# shellcheck shell=bash
# Starts llava/train/train_mem.py; sourced by the recipes, which document the variables read here.

# launch_training DEEPSPEED_CONFIG FLAG...: run (or with DRY_RUN=1 print) the trainer with these flags and those that
# all recipes share. Where a flag is given twice, the last one counts.
launch_training() {
    local config="${DEEPSPEED_CONFIG:-$1}" entry=llava/train/train_mem.py command
    shift
    case "${LAUNCHER:-deepspeed}" in
        deepspeed) command=(deepspeed ${NUM_DEVICES:+--num_gpus "$NUM_DEVICES"} "$entry" --deepspeed "$config") ;;
        torchrun) command=(torchrun --nproc_per_node "${NUM_DEVICES:-gpu}" "$entry") ;;
        python) command=("${PYTHON:-python}" "$entry") ;;
        *)
            echo "LAUNCHER is '$LAUNCHER'; accepted are deepspeed, torchrun, python." >&2
            exit 2
            ;;
    esac
    command+=(
        --model_name_or_path "${MODEL:-lmsys/vicuna-7b-v1.5}"
        --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
        --mm_projector_type "${PROJECTOR:-mlp2x_gelu}"
        --mm_vision_select_layer -2
        --mm_use_im_start_end False
        --mm_use_im_patch_token False
        --bf16 "${BF16:-True}"
        --tf32 "${TF32:-False}"
        --use_cpu "${USE_CPU:-False}"
        --num_train_epochs "${EPOCHS:-1}"
        --max_steps "${MAX_STEPS:--1}"
        --gradient_accumulation_steps "${ACCUMULATION:-1}"
        --eval_strategy no
        --save_strategy steps
        --save_total_limit "${SAVE_LIMIT:-1}"
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
        return
    fi
    exec "${command[@]}"
}
