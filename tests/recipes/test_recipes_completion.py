"""Shell completion, asked the way bash asks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
eval "$(dptrain completion bash)"
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}
read -ra COMP_WORDS <<< "$COMP_LINE"; COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_dptrain
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dptrain tr", "train"),
        ("dptrain train privacy.eps", "privacy.epsilon="),
        ("dptrain train data=dig", "data=digits"),
        ("dptrain plan experiment=quick", "experiment=quickstart"),
        ("dptrain audit audit.conf", "audit.confidence="),
        ("dptrain configs co", "copy"),
        ("dptrain budget fo", "forecast"),
        ("dptrain budget limit eps", "epsilon="),
        ("dptrain data rel", "release"),
        ("dptrain data quarantine dig", "digest="),
        ("dptrain train gate=enf", "gate=enforce"),
        ("dptrain train tuning.str", "tuning.strategy="),
        ("dptrain verify pa", "path="),
        ("dptrain compare ru", "runs="),
        ("dptrain bench bench.sec", "bench.seconds="),
        ("dptrain convert str", "strip="),
    ],
)
def test_completion(line: str, expected: str) -> None:
    import os

    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", PROGRAM, "bash", line], capture_output=True, text=True, env=environment
    )
    assert expected in done.stdout.split(), done.stdout + done.stderr
