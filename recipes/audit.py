"""Attack a finished checkpoint: can one tell members from held-out rows, and does that fit the promise?

dptrain audit run=runs/RUN
dptrain audit run=runs/RUN audit.budget=10m
python recipes/audit.py run=runs/RUN audit.fpr=[0.01]
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_audit import AuditConfig
from dptrain.launch import launch


def run(config: AuditConfig) -> dict[str, Any]:
    """Loads the bundle and the data of a run, attacks it, and writes internal/audit.json (internal tier).

    Raises:
        ConfigError: the folder or the data is not the run's.
        ClaimRejected: what the attack found contradicts the statement (exit code 4).
    """
    from dptrain.audit import stages
    from dptrain.training.reference import reference_trainer

    # 1. The run's own bundle, every digest checked, and the very rows that it was trained on.
    subject = stages.open_subject(config)

    # 2. The account of these rows learns that they are looked at again, before anything is computed.
    noted = stages.tell_ledger(subject, config)

    # 3. Where time is given: references by the run's own recipe, on halves of members and held-out rows together.
    tier = stages.references(subject, config, reference_trainer)

    # 4. Scores of members and of held-out rows; what they tell apart, with exact intervals.
    findings = stages.attack(subject, config, noted, tier)

    # 5. Kept inside the building; the exit code says whether the claim survived.
    stages.keep(subject, findings, config.tracking_uri)
    stages.say(subject, findings)
    stages.judge(subject, findings)
    return findings


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain audit``."""
    launch("audit", arguments)


if __name__ == "__main__":
    sys.exit(guarded("audit", sys.argv[1:]))
