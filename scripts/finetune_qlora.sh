#!/usr/bin/env bash
# LLaVA's place for the recipe scripts/v1_5/finetune_qlora.sh, which see.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/v1_5/finetune_qlora.sh" "$@"
