# shellcheck shell=bash
# What the recipes of Qwen3-VL share, and other defaults of what stands in the files below.
#
#   MODEL              Qwen3-VL in transformers' format                                Qwen/Qwen3-VL-8B-Instruct
#   COMPRESSION        preset or YAML file; empty: what the model has                  qwen3-share-70
#   MIN_PIXELS, MAX_PIXELS   of an image; 32 x 32 become one token                     1024, 65536 (1 and 64 tokens)
#
# Qwen's script has 784 and 50176 pixels, 1 and 64 tokens of Qwen2.5-VL; here they are as many tokens.

# shellcheck disable=SC2034 # scripts/lib/recipe.sh uses the variables

# shellcheck source=scripts/lib/qwen.sh
source scripts/lib/qwen.sh

family=qwen3-vl
recipes=scripts/qwen3_vl
usual_compression=qwen3-share-70
usual_model=Qwen/Qwen3-VL-8B-Instruct
run=qwen3-vl-8b
family_help=(scripts/lib/qwen3_vl.sh scripts/lib/qwen.sh scripts/lib/by_processor.sh)
set_qwen_media 1024 65536
