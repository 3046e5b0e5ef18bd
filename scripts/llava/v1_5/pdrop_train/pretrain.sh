#!/usr/bin/env bash
# The released pre-training script's arguments, for scripts/v1_5/pretrain.sh, which documents everything else.
#
#   bash pretrain.sh [RUN_NAME [OUTPUT_DIR [LAYERS [RATIOS [DOMINANT [CONTEXTUAL [WIDTH [REPORT_TO]]]]]]]]
#
# Missing ones have the released values: layers [16,24], ratios [0.5,0.0], 300 dominant and 7 contextual tokens,
# clusters of width 4, wandb. Name and folder are those of scripts/v1_5/pretrain.sh.
set -euo pipefail
recipe="$(dirname "${BASH_SOURCE[0]}")/../../../v1_5/pretrain.sh"
# shellcheck source=scripts/lib/help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../../lib/help.sh"
if asks_for_help "$@"; then
    show_help "${BASH_SOURCE[0]}"
    exec bash "$recipe" --help
fi
refuse_flags_among 8 "$@"
export RUN_NAME="${1:-${RUN_NAME:-}}" OUTPUT_DIR="${2:-${OUTPUT_DIR:-}}" REPORT_TO="${8:-${REPORT_TO:-wandb}}"
exec bash "$recipe" \
    --layer_list "${3:-[16,24]}" --image_token_ratio_list "${4:-[0.5,0.0]}" \
    --dominant_num "${5:-300}" --context_num "${6:-7}" --cluster_width "${7:-4}" "${@:9}"
