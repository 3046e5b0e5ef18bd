# shellcheck shell=bash
# What is trained and asked for each family of models, for scripts/reproduce.sh. Sourced, after scripts/lib/help.sh and
# scripts/lib/checks.sh.

# shellcheck disable=SC2034 # reproduce.sh uses the variables

FAMILIES=(llava-1.5 llava-next video-llava qwen2.5-vl qwen3-vl llava-onevision)

# family_of_preset PRESET: prints the family that a preset is planned for: FAMILY, where the preset is for that one too,
# else the first that it is made for, else LLaVA-1.5.
family_of_preset() {
    local families chosen
    families=$(families_of "$1")
    chosen=${FAMILY:-${families%%,*}}
    chosen=${chosen:-llava-1.5}
    one_of FAMILY "$chosen" "${FAMILIES[@]}"
    if [ -n "$families" ] && [[ ", $families," != *", $chosen,"* ]]; then
        refuse "the compression $1 is made for $families, but FAMILY is '$chosen'; give one of its presets, or none."
    fi
    printf '%s\n' "$chosen"
}

# plan_of FAMILY: sets what a plan is made of.
#
#   model_name     begins the names of folders
#   recipes        folder of pretrain.sh and finetune.sh
#   phases         pretrain and finetune, or finetune alone where nothing is pre-trained
#   released       checkpoint that the paper's rows were measured on, or that others are as usual
#   usual_preset   one of the family's, for what is said where another does not fit
#   benchmarks     of the family's table in the paper
#   trained_table, released_table   files of configs/paper that hold the rows of models that were trained, and that were
#                  not; none where the paper has no model of the family
#   pretrain_version, finetune_version   templates of the data
#   pretrain_data, pretrain_images, finetune_data, finetune_images   files of data (a list) and folder of their images,
#                  where the recipes look, too
#   pretrain_videos, finetune_videos   folder of their videos, empty without videos
#   check_flags    of the data check: for which model records are counted
plan_of() {
    local data=./playground/data root=${DATA_ROOT:-./playground/data/videollava}
    check_flags=()
    phases=(pretrain finetune)
    benchmarks=pope,sqa,textvqa,mme,gqa
    pretrain_version=plain finetune_version=v1
    pretrain_data=("$data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json") pretrain_images=$data/LLaVA-Pretrain/images
    finetune_images=$data pretrain_videos='' finetune_videos=''
    case $1 in
        llava-1.5)
            model_name=llava-v1.5-7b recipes=scripts/v1_5 released=liuhaotian/llava-v1.5-7b usual_preset=duet-192
            trained_table=table-3 released_table=table-1
            finetune_data=("$data/llava_v1_5_mix665k.json")
            ;;
        llava-next)
            model_name=llava-v1.6-vicuna-7b recipes=scripts/v1_6 released=liuhaotian/llava-v1.6-vicuna-7b
            usual_preset=next-640 trained_table=table-9-10 released_table=table-9-10
            benchmarks=$benchmarks,seed
            check_flags=(--model llava-next-7b --image-aspect-ratio anyres)
            finetune_data=("$data/open-llava-next_instruct_mix1M.json")
            ;;
        video-llava)
            model_name=video-llava-7b recipes=scripts/videollava/v1_5 released=LanguageBind/Video-LLaVA-7B
            usual_preset=video-960 trained_table=table-4 released_table=table-4
            benchmarks=tgif,msvd,msrvtt
            pretrain_version=v1
            check_flags=(--model video-llava-7b)
            pretrain_data=("$root/llava_image_.json" "$root/valley_.json")
            pretrain_images=$root pretrain_videos=$root
            finetune_data=(
                "$root/llava_image_tune_.json"
                "$root/videochatgpt_tune_.json"
                "$root/nlp_tune.json"
            )
            finetune_images=$root finetune_videos=$root
            ;;
        qwen2.5-vl)
            model_name=qwen2.5-vl-7b recipes=scripts/qwen2_5_vl released=Qwen/Qwen2.5-VL-7B-Instruct
            usual_preset=qwen-640 trained_table=table-2 released_table=table-2
            plan_by_processor 8192
            ;;
        qwen3-vl)
            model_name=qwen3-vl-8b recipes=scripts/qwen3_vl released=Qwen/Qwen3-VL-8B-Instruct
            usual_preset=qwen3-share-70 trained_table=none released_table=none
            plan_by_processor 8192
            ;;
        llava-onevision)
            model_name=llava-onevision-7b recipes=scripts/llava_onevision
            released=llava-hf/llava-onevision-qwen2-7b-ov-hf
            usual_preset=onevision-share-70 trained_table=none released_table=none
            plan_by_processor 32768
            ;;
    esac
}

# plan_by_processor LENGTH: the rest of the plan of a family that is published whole: nothing is pre-trained, and its own
# processor and chat template read the data. Without a folder, whose config.json says more, the check counts by the
# tokenizer, up to the LENGTH of the recipe.
plan_by_processor() {
    local model=${MODEL:-$released}
    phases=(finetune)
    finetune_version=''
    finetune_data=(./playground/data/llava_v1_5_mix665k.json)
    check_flags=(--tokenizer "$model" --model-max-length "${FINETUNE_MAX_LENGTH:-${MAX_LENGTH:-$1}}")
    if [ -f "$model/config.json" ]; then check_flags=(--model "$model" "${check_flags[@]}"); fi
}
