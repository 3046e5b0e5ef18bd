#!/usr/bin/env bash
# SEED-Bench: accuracy on its images.
#
#   bash scripts/v1_5/eval/seed.sh checkpoints/llava-v1.5-7b-duet-192
#
# Every setting is an environment variable; they stand at the top of scripts/lib/eval.sh, and --help prints them. More
# flags of llava.eval.run can follow the model and win over these. Relative paths start at the repository.
# `python -m llava.eval.data --benchmarks seed` says which files are needed and checks them.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/eval.sh
source scripts/lib/eval.sh

evaluate seed "$@"
