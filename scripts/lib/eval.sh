# shellcheck shell=bash
# What the scripts of scripts/v1_5/eval share: each asks a model the questions of one benchmark and scores its answers,
# through `python -m llava.eval.run`. Answers and numbers go to OUTPUT/<model>/<budget>/. The same command goes on where
# it stopped, with any number of GPUs.
#
#   MODEL              checkpoint: folder or hub name; also as first word       liuhaotian/llava-v1.5-7b
#   MODEL_BASE         language model that a projector or LoRA folder needs     none
#   COMPRESSION        preset, YAML file or none                                what the model was trained with
#   EVAL_FOLDER        benchmarks, as LLaVA lays them out                       ./playground/data/eval
#   OUTPUT             where answers and numbers go                             ./results
#   CONV_MODE          conversation template                                    that of training; vicuna_v1 where the
#                                                                               model records none
#   TEMPERATURE        0 takes the likeliest token                              0
#   MAX_NEW_TOKENS     longest answer                                           as the benchmark asks
#   BATCH_SIZE         questions answered together on a GPU                     16; 1 on a CPU
#   NUM_GPUS           processes, a GPU each                                    all that can be used; 1 on a CPU
#   CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES   which GPUs may be used   all
#   LOADER_WORKERS     processes of each GPU that read images ahead             4 with a GPU, 0 on a CPU
#   DTYPE              float32, bfloat16 or float16                             float16; float32 on a CPU
#   SEED, LIMIT        of sampling; only so many questions                      0, all
#   JUDGE              1 or 0: grade by a language model what needs it          1 if LLAVA_JUDGE_URL or LLAVA_JUDGE_KEY
#                                                                               is set
#   PYTHON             interpreter                                              python
#   DRY_RUN            1 only prints the command                                0

# shellcheck source=scripts/lib/recipe.sh
source scripts/lib/recipe.sh

# usable_gpus [FLAG...]: prints how many GPUs the program can use: none with --device cpu, one with --device cuda:1.
usable_gpus() {
    local kind shown visible found hidden device=''
    while [ "$#" -gt 0 ]; do
        case $1 in
            --device) device=${2:-} ;;
            --device=*) device=${1#*=} ;;
        esac
        shift
    done
    case $device in
        cpu) echo 0 ;;
        '' | cuda)
            look_for_any
            echo "$found"
            ;;
        *) echo 1 ;;
    esac
}

# judge_flag: prints the flag that JUDGE asks for, if any.
judge_flag() {
    case ${JUDGE:-} in
        '') ;;
        1) echo --judge ;;
        0) echo --no-judge ;;
        *) refuse "JUDGE is '$JUDGE'; accepted are 1 and 0." ;;
    esac
}

# evaluate BENCHMARK [WORD...]: the first word is the model unless it is a flag; flags go to the program and win.
evaluate() {
    local benchmark=$1 gpus judge words
    shift
    if asks_for_help "$@"; then
        show_help "scripts/v1_5/eval/$(basename "$0")" scripts/lib/eval.sh
        exit 0
    fi
    if [ -n "${1:-}" ] && [[ $1 != -* ]]; then
        MODEL=$1
        shift
    fi
    one_of DRY_RUN "${DRY_RUN:-0}" 0 1
    gpus=$(usable_gpus "$@") || exit 2
    judge=$(judge_flag) || exit 2
    NUM_GPUS=${NUM_GPUS:-$((gpus > 0 ? gpus : 1))}
    BATCH_SIZE=${BATCH_SIZE:-$((gpus > 0 ? 16 : 1))}
    whole NUM_GPUS "$NUM_GPUS"
    whole BATCH_SIZE "$BATCH_SIZE"
    words=(
        "${PYTHON:-python}" -m llava.eval.run
        --model-path "${MODEL:-liuhaotian/llava-v1.5-7b}"
        ${MODEL_BASE:+--model-base "$MODEL_BASE"}
        --benchmarks "$benchmark"
        ${COMPRESSION:+--compression "$COMPRESSION"}
        --eval-folder "${EVAL_FOLDER:-./playground/data/eval}"
        --output "${OUTPUT:-./results}"
        ${CONV_MODE:+--conv-mode "$CONV_MODE"}
        --temperature "${TEMPERATURE:-0}"
        ${MAX_NEW_TOKENS:+--max-new-tokens "$MAX_NEW_TOKENS"}
        --batch-size "$BATCH_SIZE"
        --num-gpus "$NUM_GPUS"
        ${LOADER_WORKERS:+--loader-workers "$LOADER_WORKERS"}
        ${DTYPE:+--dtype "$DTYPE"}
        ${SEED:+--seed "$SEED"}
        ${LIMIT:+--limit "$LIMIT"}
        ${judge:+"$judge"}
        "$@"
    )
    if [ "${DRY_RUN:-0}" = 1 ]; then
        print_command "${words[@]}"
    else
        runnable PYTHON "${words[0]}"
        exec "${words[@]}"
    fi
}
