#!/usr/bin/env bash
# bash scripts/test.sh [pytest arguments]: style, types and the whole test suite in dptrain's own environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1}
if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/pyright
    exec .venv/bin/python -m pytest -n "${DPTRAIN_TEST_WORKERS:-2}" -m "not slow and not gpu"
fi
exec .venv/bin/python -m pytest "$@"
