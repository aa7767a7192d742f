#!/usr/bin/env bash
# bash scripts/quickstart.sh [overrides]: installs, trains a private model on real handwriting, attacks it, reports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

run=runs/quickstart-$(date -u +%Y%m%d-%H%M%S)
.venv/bin/dptrain train experiment=quickstart run.dir="$run" "$@"
.venv/bin/dptrain audit run="$run"
.venv/bin/dptrain report run="$run"
