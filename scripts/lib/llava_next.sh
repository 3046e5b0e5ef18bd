# shellcheck shell=bash
# What the recipes of scripts/v1_6 share beside scripts/lib/recipe.sh, and other defaults of what stands there.
#
#   COMPRESSION        preset or YAML file; empty: what the model has                  next-640
#   MERGE_TYPE         how crops are joined: flat, spatial, spatial_unpad, ...         spatial_unpad
#   PINPOINTS          canvases, '[[336, 672], ...]' or '(1x1),...,(6x6)'              LLaVA-1.6's for the tower
#   TF32, MAX_LENGTH                                                                   True, 4096

# shellcheck disable=SC2034 # scripts/lib/recipe.sh and the recipes use them
family=llava-next
recipes=scripts/v1_6
usual_compression=next-640
run=llava-v1.6-vicuna-7b
family_help=(scripts/lib/llava_next.sh)
TF32=${TF32:-True}
MAX_LENGTH=${MAX_LENGTH:-4096}
IMAGE_ASPECT=${IMAGE_ASPECT:-anyres}
crop_flags=(--mm_patch_merge_type "${MERGE_TYPE:-spatial_unpad}" ${PINPOINTS:+--image_grid_pinpoints "$PINPOINTS"})
