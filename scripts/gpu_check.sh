#!/usr/bin/env bash
# Everything that wants a GPU, in one command of at most 8 minutes on one card with 80 GB: the recorded cases, the tests
# that need a device, and what prefill, training step and decoding of a LLaVA-1.5-7B take with and without compression.
#
#   bash scripts/gpu_check.sh              # results go to gpu_check.jsonl
#   bash scripts/gpu_check.sh OUT          # to another file, or into a folder
#   bash scripts/gpu_check.sh --help       # parts, limits and options; runs nothing, as does DRY_RUN=1
#
# Every result is in the file as soon as it is known; a run that is cut short leaves what it had. Installs nothing: needs
# a Python with torch, transformers and pillow, PYTHON if it is set, else this tree's .venv, else python3.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
# shellcheck source=scripts/lib/checks.sh
source "$root/scripts/lib/checks.sh"
runnable PYTHON "$python"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m llava.bench.gpu_check "$@"
