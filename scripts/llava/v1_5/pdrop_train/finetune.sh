#!/usr/bin/env bash
# The released fine-tuning script's arguments, for scripts/v1_5/finetune.sh, which documents everything else.
#
#   bash finetune.sh [RUN_NAME [OUTPUT_DIR [LAYERS [RATIOS [ADAPTER [DOMINANT [CONTEXTUAL [WIDTH [REPORT_TO]]]]]]]]]
#
# Missing ones have the released values: layers [16,24], ratios [0.5,0.0], 300 dominant and 7 contextual tokens,
# clusters of width 4, wandb. Name, folder and adapter are those of scripts/v1_5/finetune.sh.
set -euo pipefail
recipe="$(dirname "${BASH_SOURCE[0]}")/../../../v1_5/finetune.sh"
# shellcheck source=scripts/lib/help.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../../lib/help.sh"
if asks_for_help "$@"; then
    show_help "${BASH_SOURCE[0]}"
    exec bash "$recipe" --help
fi
refuse_flags_among 9 "$@"
export RUN_NAME="${1:-${RUN_NAME:-}}" OUTPUT_DIR="${2:-${OUTPUT_DIR:-}}" ADAPTER="${5:-${ADAPTER:-}}"
export REPORT_TO="${9:-${REPORT_TO:-wandb}}"
exec bash "$recipe" \
    --layer_list "${3:-[16,24]}" --image_token_ratio_list "${4:-[0.5,0.0]}" \
    --dominant_num "${6:-300}" --context_num "${7:-7}" --cluster_width "${8:-4}" "${@:10}"
