# shellcheck shell=bash
# What the recipes of Qwen2.5-VL share, and other defaults of what stands in the files below.
#
#   MODEL              Qwen2.5-VL in transformers' format                              Qwen/Qwen2.5-VL-7B-Instruct
#   COMPRESSION        preset or YAML file; empty: what the model has                  qwen-share-70
#   MIN_PIXELS, MAX_PIXELS   of an image; 28 x 28 become one token                     784, 50176 (1 and 64 tokens)

# shellcheck disable=SC2034 # scripts/lib/recipe.sh uses the variables

# shellcheck source=scripts/lib/qwen.sh
source scripts/lib/qwen.sh

family=qwen2.5-vl
recipes=scripts/qwen2_5_vl
usual_compression=qwen-share-70
usual_model=Qwen/Qwen2.5-VL-7B-Instruct
run=qwen2.5-vl-7b
family_help=(scripts/lib/qwen2_5_vl.sh scripts/lib/qwen.sh scripts/lib/by_processor.sh)
set_qwen_media 784 50176
