#!/usr/bin/env bash
# MMBench in Chinese, dev split: circular accuracy, and the table that its server takes.
#
#   bash scripts/v1_5/eval/mmbench_cn.sh checkpoints/llava-v1.5-7b-duet-192
#
# Every setting is an environment variable; they stand at the top of scripts/lib/eval.sh, and --help prints them. More
# flags of llava.eval.run can follow the model and win over these. Relative paths start at the repository.
# `python -m llava.eval.data --benchmarks mmbench_cn` says which files are needed and checks them.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/eval.sh
source scripts/lib/eval.sh

evaluate mmbench_cn "$@"
