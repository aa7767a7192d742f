#!/usr/bin/env bash
# Pins what a clean environment resolves to: full versions, no local suffix, no CUDA parts, no addresses.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -qq "torch==${TORCH:-2.13.0}"
"$folder/env/bin/python" -m pip install -qq -e '.[dev,onnx]' onnxruntime
{
    echo "# Pins of a clean environment; made by scripts/refresh_constraints.sh."
    echo "# torch has no local suffix, so that pip takes a CPU build where one lies and the CUDA build elsewhere."
    "$folder/env/bin/python" -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$//' |
        grep -viE '^(nvidia-|triton|cuda-|dptrain)' | grep -v '@'
} > constraints.txt
