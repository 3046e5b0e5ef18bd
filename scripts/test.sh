#!/usr/bin/env bash
# Runs every check: ruff, import-linter, mypy, shellcheck, pytest. Sets itself up on first use (see scripts/lib/setup.sh).
#
#   bash scripts/test.sh                        # everything, the tests in a process more than cores (at most four)
#   bash scripts/test.sh --quick                # style, and the tests of the method, the models and the golden cases
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
# The tests of --quick.
QUICK=(tests/test_{accepted_inputs,columns,config,families,generation,generation_batches,properties,salience,scored_by}.py
    tests/test_{semantics,t2v,tower,v2v,verify}.py)
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
compiled="${PYTHON%/bin/*}/torch_extensions" # see deepspeed_operation in scripts/lib/setup.sh
if [ -d "$compiled" ]; then export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$compiled}"; fi

# A process takes a whole file, since tests of a file share what they trained; tests/conftest.py puts the longest first.
# A process needs about 1 GiB, and so does each of the two that a distributed test starts.
in_processes=(-n auto --dist loadfile --no-loadscope-reorder)
if [ "$#" -eq 0 ]; then
    set -- "${in_processes[@]}"
elif [ "$1" = --quick ]; then
    shift
    set -- "${in_processes[@]}" "${QUICK[@]}" "$@"
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

# begin NAME COMMAND...: starts a check of style, all of which run at once; `check NAME outcome NAME` waits for it. The two
# that take longer than a few seconds end beside the tests, which leave a core idle now and then.
begin() {
    local name=$1
    shift
    if [ "$dry_run" = 1 ]; then
        check "$name" "$@"
        return
    fi
    "$@" >"$outputs/$name" 2>&1 &
    processes[$name]=$!
}

outcome() {
    local status=0
    wait "${processes[$1]}" || status=$?
    cat "$outputs/$1"
    return "$status"
}

# waited_for NAME: prints a check of style that was begun; in a dry run there is none.
waited_for() {
    if [ "$dry_run" = 0 ]; then check "$1" outcome "$1"; fi
}

stop_all() {
    local left
    left=$(jobs -pr)
    # shellcheck disable=SC2086 # a list of numbers
    if [ -n "$left" ]; then kill $left 2>/dev/null || true; fi
    rm -r "$outputs"
}

# scripts_pass COMMAND...: runs shellcheck, which takes half a minute, unless no script changed since all passed. What
# passed is noted in an environment that was made here.
scripts_pass() {
    local environment=${PYTHON%/bin/*} now
    now=$({ shellcheck --version && printf '%s\n' "$@" && cat "${shell_scripts[@]}"; } | cksum)
    if [ "$(cat "$environment/.shellcheck-passed" 2>/dev/null)" = "$now" ]; then
        echo "No script changed since all passed."
        return
    fi
    "$@" || return
    if [ -f "$environment/.ready-test" ]; then echo "$now" >"$environment/.shellcheck-passed"; fi
}

declare -A processes
if [ "$dry_run" = 0 ]; then
    outputs=$(mktemp -d)
    trap stop_all EXIT
fi
mapfile -t shell_scripts < <(find scripts .ci -name '*.sh' -o -path .ci/run)
shellcheck=(shellcheck -x "${shell_scripts[@]}")
if [ "$dry_run" = 0 ]; then shellcheck=(scripts_pass "${shellcheck[@]}"); fi
begin "shellcheck" "${shellcheck[@]}"
begin "mypy" "$PYTHON" -m mypy
begin "imports" lint-imports --no-logo --no-cache
begin "ruff check" "$PYTHON" -m ruff check .
begin "ruff format" "$PYTHON" -m ruff format --check .
for name in imports "ruff check" "ruff format"; do waited_for "$name"; done
check "pytest" "$PYTHON" -m pytest "$@"
for name in shellcheck mypy; do waited_for "$name"; done

if [ "$dry_run" = 1 ]; then exit 0; fi
if [ "${#failed[@]}" -gt 0 ]; then
    printf -v list '%s, ' "${failed[@]}"
    die "not everything passed: ${list%, }"
fi
say "All checks passed in $SECONDS s"
