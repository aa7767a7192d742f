"""Under what each part of a run was computed: settings that may change when it goes on. Internal tier.

None of them changes the law of what is released (``training/drift.py``); a device or a physical batch may change the
last bits of clipped sums, within the slack that the plan pays for.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from dptrain.errors import ConfigError
from dptrain.run_folder import read_json, write_json
from dptrain.training.setup import Setup

NAME = "parts.json"


def note_part(setup: Setup, executed: int) -> None:
    """Adds this process to ``internal/parts.json``: the step it begins behind, device, physical batch, torch."""
    file, execution = setup.folder.internal / NAME, setup.config.execution
    known: Any = []
    if executed and file.is_file():
        try:
            known = read_json(file)
        except ConfigError:  # a note for people: what is damaged is begun anew
            known = []
    part = {
        "from_step": executed,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(next(setup.module.parameters()).device),
        "physical_batch_size": execution.physical_batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(file, [*(known if isinstance(known, list) else []), part])
