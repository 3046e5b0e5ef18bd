#!/usr/bin/env bash
# Runs every check: ruff, import-linter, mypy, shellcheck, pytest. Sets itself up on first use (see scripts/lib/setup.sh).
#
#   bash scripts/test.sh                        # everything, the tests in a process per core (at most four)
#   bash scripts/test.sh tests/test_v2v.py -x   # arguments go to pytest; the style checks run all the same
#
# NEWEST=1 bash scripts/test.sh runs them with the newest transformers that pyproject.toml allows, by the versions of
# constraints-newest.txt, in an environment of its own, .venv-newest.
# DRY_RUN=1 only prints the checks; nothing is set up.
# PYTEST_XDIST_AUTO_NUM_WORKERS=1 takes another number of processes for everything.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/help.sh
source scripts/lib/help.sh
if asks_for_help "$@"; then
    show_help scripts/test.sh
    exit 0
fi
# shellcheck source=scripts/lib/setup.sh
source scripts/lib/setup.sh
# shellcheck source=scripts/lib/supervise.sh
source scripts/lib/supervise.sh
if [ "$#" -gt 0 ] && [[ $1 != -* ]] && [ ! -e "${1%%::*}" ]; then
    refuse "'$1' is neither an option of pytest nor a path below $PWD; --help says what can be given."
fi
dry_run=${DRY_RUN:-0}
one_of DRY_RUN "$dry_run" 0 1
one_of NEWEST "${NEWEST:-0}" 0 1
if [ "$dry_run" = 1 ]; then PYTHON=${PYTHON:-python}; else setup_environment test; fi

# Nothing here may ask the network, and small tensors gain nothing from more threads.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that spin while they wait starve others on a busy machine
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# A process takes a whole file, since tests of a file share what they trained; tests/conftest.py puts the longest first.
# A process needs about 1 GiB, and so does each of the two that a distributed test starts.
if [ "$#" -eq 0 ]; then
    set -- -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
fi

failed=()
check() {
    local name=$1 started=$SECONDS
    shift
    if [ "$dry_run" = 1 ]; then
        echo "# $name"
        print_command "$@"
        return
    fi
    say "$name"
    if "$@"; then
        say "$name passed in $((SECONDS - started)) s"
    else
        failed+=("$name")
        say "$name FAILED after $((SECONDS - started)) s"
    fi
}

mapfile -t shell_scripts < <(find scripts .ci -name '*.sh' -o -path .ci/run)
check "ruff check" "$PYTHON" -m ruff check .
check "ruff format" "$PYTHON" -m ruff format --check .
check "imports" lint-imports --no-logo --no-cache
check "mypy" "$PYTHON" -m mypy
check "shellcheck" shellcheck -x "${shell_scripts[@]}"
check "pytest" "$PYTHON" -m pytest "$@"

if [ "$dry_run" = 1 ]; then exit 0; fi
if [ "${#failed[@]}" -gt 0 ]; then
    printf -v list '%s, ' "${failed[@]}"
    die "not everything passed: ${list%, }"
fi
say "All checks passed in $SECONDS s"
