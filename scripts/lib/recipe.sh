# shellcheck shell=bash
# What the recipes of scripts/v1_5 share. A recipe calls begin_recipe, then launch_training with these flags and its
# own; where a flag is given twice, the last one counts, so that the command line of a recipe wins over all of them.
#
#   COMPRESSION        preset or YAML file; empty: what the model has                  duet-192
#   SCALE_TO_DEPTH     True scales its layers to the depth of the model                False
#   MODEL              language model or LLaVA checkpoint                              lmsys/vicuna-7b-v1.5
#   VISION_TOWER       CLIP model                                                      openai/clip-vit-large-patch14-336
#   PROJECTOR          shape of the projector                                          mlp2x_gelu
#   RUN_NAME           name of the run in wandb or TensorBoard                         last part of OUTPUT_DIR
#   WARMUP_RATIO, SCHEDULER, WEIGHT_DECAY                                              0.03, cosine, 0.
#   EPOCHS, MAX_STEPS  length of the run; MAX_STEPS of -1 leaves it to EPOCHS          1, -1
#   MAX_LENGTH         longest sequence in tokens                                      2048
#   TF32                                                                               False
#   GRADIENT_CHECKPOINTING   which layers run again: True, False, before_drop, or auto: by memory   True
#   PACKING            rows end to end without padding: auto, on or off                auto
#   MAX_TOKENS_PER_DEVICE   fill forward passes by tokens, at most so many             by rows
#   SAVE_LIMIT, LOGGING_STEPS, SEED                                                    1, 1, 42
#   WORKERS            data loading processes of each device                           as many as fit the machine
#   EVAL_DATA_PATH     held-out conversations; if given, their loss is measured        none
#   EVAL_STEPS, EVAL_BATCH_SIZE   how often, and samples of one device at a time       500, 4
#   IMAGE_OPENING      upright, or llava: rotation marks of photos left aside          the checkpoint's, else upright
#   ON_BAD_SAMPLE, MAX_BAD_SHARE  what to do about images that cannot be read          left to the trainer
#   DATA_CACHE_DIR     where prepared data is kept                                     left to the trainer
#   PEAK_TFLOPS        of one device, for the share of it that is used                 left to the trainer
#   REPORT_TO          wandb, tensorboard or none                                      none

# shellcheck disable=SC2034 # the recipes use the arrays

# shellcheck source=scripts/lib/help.sh
source scripts/lib/help.sh
# shellcheck source=scripts/lib/launch.sh
source scripts/lib/launch.sh

# What differs between families. A recipe of another one sets these before it calls begin_recipe.
family=llava-1.5                   # as in the line `for` of presets
recipes=scripts/v1_5               # folder of the recipe
usual_compression=duet-192         # where COMPRESSION is not set
usual_model=lmsys/vicuna-7b-v1.5   # where MODEL is not set
run=llava-v1.5-7b                  # begins the names of folders and runs
family_help=()                     # files that say what the recipes of the family share beside this one

# begin_recipe SUFFIX [WORD...]: with --help prints the documentation and ends; else settles COMPRESSION, RUN (the name
# of the model with this budget), OUTPUT_DIR (its folder, with the suffix) and RUN_NAME.
begin_recipe() {
    local name misfit usual='' model=${MODEL:-$usual_model}
    if asks_for_help "${@:2}"; then
        show_help "$recipes/$(basename "$0")" "${family_help[@]}" scripts/lib/recipe.sh scripts/lib/launch.sh
        exit 0
    fi
    if [ -z "${COMPRESSION+given}" ]; then usual=' (its default)'; fi
    COMPRESSION=${COMPRESSION-$usual_compression}
    boolean SCALE_TO_DEPTH "${SCALE_TO_DEPTH:-False}"
    if has_flag_among "--compression --model_name_or_path --layer_list --image_token_ratio_list --use_salient_tokens
        --dominant_num --context_num --cluster_width --scale_to_depth --scale-to-depth" "${@:2}"; then
        model='' # flags win over the variables; whether they fit is the trainer's to say
    fi
    misfit=$(fits_family "$family" "$usual_compression" "$COMPRESSION" "$model" "${SCALE_TO_DEPTH:-False}")
    if [ -n "$misfit" ]; then refuse "COMPRESSION is '$COMPRESSION'$usual: $misfit"; fi
    name=${COMPRESSION##*/}
    name=${name%.yaml}
    RUN=$run${name:+-$name}
    OUTPUT_DIR=${OUTPUT_DIR:-./checkpoints/$RUN$1}
    RUN_NAME=${RUN_NAME:-$(basename -- "$OUTPUT_DIR")}
    starts=("$(value_of --model_name_or_path --model_name_or_path "${MODEL:-}" "${@:2}")" "$(value_of --lora_weight_path "${@:2}")")
    set_common_flags
}

# set_tower_flags: sets tower_flags, what makes a LLaVA of a language model. A family whose models are whole says none.
set_tower_flags() {
    tower_flags=(
        --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
        --mm_projector_type "${PROJECTOR:-mlp2x_gelu}"
        --mm_vision_select_layer -2
        --mm_use_im_start_end False
        --mm_use_im_patch_token False
    )
}

# set_common_flags: sets common_flags, what every recipe passes to the trainer.
set_common_flags() {
    set_tower_flags
    common_flags=(
        --model_name_or_path "${MODEL:-$usual_model}"
        "${tower_flags[@]}"
        ${COMPRESSION:+--compression "$COMPRESSION"}
        ${SCALE_TO_DEPTH:+--scale_to_depth "$SCALE_TO_DEPTH"}
        --output_dir "$OUTPUT_DIR"
        --run_name "$RUN_NAME"
        --tf32 "${TF32:-False}"
        --num_train_epochs "${EPOCHS:-1}"
        --max_steps "${MAX_STEPS:--1}"
        --save_strategy steps
        --save_total_limit "${SAVE_LIMIT:-1}"
        --weight_decay "${WEIGHT_DECAY:-0.}"
        --warmup_steps "${WARMUP_RATIO:-0.03}"
        --lr_scheduler_type "${SCHEDULER:-cosine}"
        --logging_steps "${LOGGING_STEPS:-1}"
        --model_max_length "${MAX_LENGTH:-2048}"
        --activation_checkpointing "${GRADIENT_CHECKPOINTING:-True}"
        ${WORKERS:+--dataloader_num_workers "$WORKERS"}
        --seed "${SEED:-42}"
        --report_to "${REPORT_TO:-none}"
        ${PACKING:+--packing "$PACKING"}
        ${MAX_TOKENS_PER_DEVICE:+--max_tokens_per_device "$MAX_TOKENS_PER_DEVICE"}
        ${IMAGE_OPENING:+--image_opening "$IMAGE_OPENING"}
        ${ON_BAD_SAMPLE:+--on_bad_sample "$ON_BAD_SAMPLE"}
        ${MAX_BAD_SHARE:+--max_bad_share "$MAX_BAD_SHARE"}
        ${DATA_CACHE_DIR:+--data_cache_dir "$DATA_CACHE_DIR"}
        ${PEAK_TFLOPS:+--peak_tflops "$PEAK_TFLOPS"}
    )
    if [ -n "${EVAL_DATA_PATH:-}" ]; then
        common_flags+=(--eval_data_path "$EVAL_DATA_PATH" --eval_strategy steps --eval_steps "${EVAL_STEPS:-500}")
        common_flags+=(--per_device_eval_batch_size "${EVAL_BATCH_SIZE:-4}")
    else
        common_flags+=(--eval_strategy no)
    fi
}

# records_template FOLDER: whether its config.json records a conversation template in which a model can be asked.
records_template() {
    local recorded
    if [ ! -f "$1/config.json" ]; then return 1; fi
    recorded=$(grep -o '"conversation_template"[[:space:]]*:[[:space:]]*"[^"]*"' <"$1/config.json" || true)
    [ -n "$recorded" ] && [[ $recorded != *'"plain"' ]]
}

# value_of FLAG WORD...: the value that the words give a flag, the last one where there are several.
value_of() {
    local flag=$1 value=""
    shift
    while [ $# -gt 0 ]; do
        if [ "$1" = "$flag" ]; then value=${2:-}; fi
        if [[ $1 == "$flag="* ]]; then value=${1#*=}; fi
        shift
    done
    printf '%s\n' "$value"
}

# set_data_flags: sets data_flags, the data of the second phase. A family with other data has a function of its own.
set_data_flags() {
    data_flags=(
        --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
        --image_folder "${IMAGE_FOLDER:-./playground/data}"
    )
}

# set_finetune_flags: sets finetune_flags, what the recipes of the second phase share. Without VERSION, training goes on
# in the template that MODEL or the adapters record: a --version on the command line would take its place.
set_finetune_flags() {
    local version=${VERSION:-} start
    if [ -z "$version" ]; then
        version=v1
        for start in "${starts[@]}"; do
            if records_template "$start"; then version=""; fi
        done
    fi
    set_data_flags
    finetune_flags=(
        "${common_flags[@]}"
        ${version:+--version "$version"}
        "${data_flags[@]}"
        --image_aspect_ratio "${IMAGE_ASPECT:-pad}"
        --group_by_modality_length True
        --save_steps "${SAVE_STEPS:-500}"
    )
}

# set_lora_flags: sets lora_flags, what the recipes that train a low-rank adapter share.
set_lora_flags() {
    lora_flags=(
        --lora_enable True
        --lora_r "${LORA_R:-128}"
        --lora_alpha "${LORA_ALPHA:-256}"
        --lora_dropout "${LORA_DROPOUT:-0.05}"
        --learning_rate "${LEARNING_RATE:-2e-4}"
        --mm_projector_lr "${PROJECTOR_LR:-2e-5}"
    )
}
