#!/usr/bin/env bash
# Trains a tiny LLaVA with DUET compression on real images, evaluates it at several token budgets and writes a report
# with pictures. Sets itself up on first use (see scripts/lib/setup.sh); after that nothing touches the network.
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --study    # instead, the paper's Tables 1 and 3 in miniature: up to 2 hours on 2 cores
#   bash scripts/quickstart.sh --video-study    # or its Table 4: a Video-LLaVA and short videos; 36 minutes on one core
#
# A step that is done already is skipped, unless its settings or an earlier step changed. All optional:
#   DRY_RUN=1                  only print the command of every step; nothing is set up
#   QUICKSTART_FRESH=1         do everything again; what the steps wrote before is removed, nothing else
#   QUICKSTART_OUTPUT          where everything is written: a new folder, an empty one, or one of an earlier run
#                                                                      playground/output/quickstart
#   QUICKSTART_CAPTIONS        images with a caption, for phase 1      6400
#   QUICKSTART_TRAIN           images with questions, for phase 2      10240
#   QUICKSTART_QUESTIONS       held-out questions                      2000
#   QUICKSTART_PRETRAIN_STEPS, QUICKSTART_FINETUNE_STEPS               one epoch
#
# The study trains and questions a model for every method, budget and seed; a cell that is done is never done again.
#   STUDY_OUTPUT               where everything is written             playground/output/study
#   STUDY_SEEDS                models of each kind; may grow           3
#   STUDY_IMAGES, STUDY_QUESTIONS        for training, held out        10240, 1000
#   STUDY_PRETRAIN_STEPS, STUDY_FINETUNE_STEPS                         160, 120
#   STUDY_JOBS                 cells at a time                         2
#
# The study of videos has its own folder and lengths (python -m playground.study.video --help says the others):
#   VIDEO_STUDY_OUTPUT         where everything is written             playground/output/video-study
#   VIDEO_STUDY_SEEDS          models of each kind; may grow           1
#   VIDEO_STUDY_CLIP_STEPS     6 conversations about clips each        1300
#   VIDEO_STUDY_LAST_STEPS     more of them, under each compression    400
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/help.sh
source scripts/lib/help.sh
if asks_for_help "$@"; then
    show_help scripts/quickstart.sh
    exit 0
fi
# shellcheck source=scripts/lib/setup.sh
source scripts/lib/setup.sh
# shellcheck source=scripts/lib/steps.sh
source scripts/lib/steps.sh

study=0
case "$*" in
    '') ;;
    --study) study=1 ;;
    --video-study) study=video ;;
    *) die "the quickstart takes no argument but --study or --video-study; this was given: $*" ;;
esac

# Everything that was set is looked at before the set-up, which takes minutes.
started=$SECONDS
dry_run=${DRY_RUN:-0}
unset DRY_RUN # the recipes below are steps of this plan
one_of DRY_RUN "$dry_run" 0 1
one_of QUICKSTART_FRESH "${QUICKSTART_FRESH:-0}" 0 1
for name in QUICKSTART_{CAPTIONS,TRAIN,QUESTIONS,PRETRAIN_STEPS,FINETUNE_STEPS} \
    STUDY_{SEEDS,IMAGES,QUESTIONS,PRETRAIN_STEPS,FINETUNE_STEPS,JOBS} VIDEO_STUDY_{SEEDS,{CLIP,LAST}_STEPS}; do
    if [ -n "${!name:-}" ] && [[ $name != QUICKSTART_*_STEPS || ${!name} != -1 ]]; then whole "$name" "${!name}"; fi
done
output="${QUICKSTART_OUTPUT:-playground/output/quickstart}"
if [ "$study" = 1 ]; then
    target_folder STUDY_OUTPUT "${STUDY_OUTPUT:-playground/output/study}"
elif [ "$study" = video ]; then
    target_folder VIDEO_STUDY_OUTPUT "${VIDEO_STUDY_OUTPUT:-playground/output/video-study}"
else
    check_steps QUICKSTART_OUTPUT "$output"
fi
if [ "$dry_run" = 1 ]; then PYTHON=${PYTHON:-python}; else setup_environment quickstart; fi
setup_seconds=$((SECONDS - started))

export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that spin while they wait starve others on a busy machine
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}"
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES%%,*}" # one device is plenty

if [ "$study" != 0 ]; then
    command=(
        "$PYTHON" -m playground.study --out "${STUDY_OUTPUT:-playground/output/study}" --seeds "${STUDY_SEEDS:-3}"
        --images "${STUDY_IMAGES:-10240}" --questions "${STUDY_QUESTIONS:-1000}" --jobs "${STUDY_JOBS:-2}"
        --pretrain-steps "${STUDY_PRETRAIN_STEPS:-160}" --finetune-steps "${STUDY_FINETUNE_STEPS:-120}"
    )
    if [ "$study" = video ]; then
        command=(
            "$PYTHON" -m playground.study.video --out "${VIDEO_STUDY_OUTPUT:-playground/output/video-study}"
            --seeds "${VIDEO_STUDY_SEEDS:-1}" --clip-steps "${VIDEO_STUDY_CLIP_STEPS:-1300}"
            --last-steps "${VIDEO_STUDY_LAST_STEPS:-400}"
        )
    fi
    if [ "$dry_run" = 1 ]; then
        print_command "${command[@]}"
        exit
    fi
    "${command[@]}"
    say "Finished after $((SECONDS - started)) s."
    exit
fi

use_cpu=True
if [ "$dry_run" = 1 ]; then
    step() { # NAME TARGET COMMAND...
        printf '# %s: %s\n' "$1" "$2"
        print_command "${@:3}"
    }
    echo "# USE_CPU is False where torch sees a GPU."
else
    begin_steps "$output" "$(cat playground/assets/*/* playground/quickstart/*.yaml | cksum)" # all follows from these
    if [ "${QUICKSTART_FRESH:-0}" = 1 ]; then forget_steps "$output"; fi
    if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then use_cpu=False; fi
fi

# Both phases run the recipes of scripts/v1_5 with what they share and what is smaller here.
recipe=(
    env "PYTHON=$PYTHON" LAUNCHER=python "USE_CPU=$use_cpu" BF16=False ACCUMULATION=1 GRADIENT_CHECKPOINTING=False
    "COMPRESSION=$PWD/playground/quickstart/duet-67.yaml"
    "MODEL=$PWD/playground/assets/language_model" "VISION_TOWER=$PWD/playground/assets/vision_tower"
    IMAGE_ASPECT=square MAX_LENGTH=256 WORKERS=1 LOGGING_STEPS=5 SAVE_STEPS=1000000
)
absolute=$output
if [[ $absolute != /* ]]; then absolute=$PWD/$output; fi
budgets=(playground/quickstart/{none,{duet,random,uniform}-{67,78,89}}.yaml)

if [ "$dry_run" = 1 ]; then
    : # there are no times to keep
elif [ "$setup_seconds" -gt 1 ] || ! grep -q '^Set-up' "$timings"; then record "Set-up" "$setup_seconds"; fi
step "Data" "$output/data" "$PYTHON" -m playground.world --out "$output/data" \
    --pretrain "${QUICKSTART_CAPTIONS:-6400}" --train "${QUICKSTART_TRAIN:-10240}" \
    --test "${QUICKSTART_QUESTIONS:-2000}"
step "Phase 1, projector" "$output/pretrain" "${recipe[@]}" \
    "DATA_PATH=$absolute/data/pretrain.json" "IMAGE_FOLDER=$absolute/data/images" "OUTPUT_DIR=$absolute/pretrain" \
    BATCH_SIZE=64 LEARNING_RATE=3e-3 WARMUP_RATIO=0.05 "MAX_STEPS=${QUICKSTART_PRETRAIN_STEPS:--1}" \
    bash scripts/v1_5/pretrain.sh --overwrite_output_dir True --logging_first_step True
step "Phase 2, instruction tuning" "$output/model" "${recipe[@]}" \
    "DATA_PATH=$absolute/data/instruct.json" "IMAGE_FOLDER=$absolute/data/images" "OUTPUT_DIR=$absolute/model" \
    "ADAPTER=$absolute/pretrain/mm_projector.bin" \
    BATCH_SIZE=64 LEARNING_RATE=1e-3 WARMUP_RATIO=0.05 "MAX_STEPS=${QUICKSTART_FINETUNE_STEPS:--1}" \
    bash scripts/v1_5/finetune.sh --overwrite_output_dir True --logging_first_step True --mm_projector_lr 2e-3
step "Evaluation" "$output/results.json" "$PYTHON" -m playground.quickstart.evaluate \
    --model-path "$output/model" --questions "$output/data/test.jsonl" --image-folder "$output/data/images" \
    --compression "${budgets[@]}" --out "$output/results.json"
if [ "$dry_run" != 1 ]; then record "Total" "$((SECONDS - started))"; fi
step "Report" "$output/report.html" "$PYTHON" -m playground.quickstart.report --folder "$output"
if [ "$dry_run" = 1 ]; then exit; fi
say "Finished after $((SECONDS - started)) s. Open $output/report.html in a browser."
