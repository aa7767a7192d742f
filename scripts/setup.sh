#!/usr/bin/env bash
# Makes .venv and installs dptrain with its development tools, once; again only when the pins change.
# PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.stamp
want=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        echo "dptrain: error: PYTHON=$python: is not Python 3.11 to 3.13; set PYTHON to one that is" >&2
        exit 2
    fi
    echo "Setting up .venv (a few minutes, about 2 GB) ..."
    rm -f "$stamp"
    "$python" -m venv .venv
    # torch first and alone: the pin then takes the build that lies nearest, CPU or CUDA.
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
    echo "$want" > "$stamp"
fi
