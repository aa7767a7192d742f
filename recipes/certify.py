"""Does every bound of the audit keep its promise? Simulated on made-up scores whose true epsilon is known.

dptrain certify
python recipes/certify.py simulations=2000 epsilon=8 into=certificate.json
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from dptrain.cli import guarded
from dptrain.config_certify import CertifyConfig
from dptrain.launch import launch


def run(config: CertifyConfig) -> dict[str, Any]:
    """Simulates every family and prints, bound by bound, how often it was above the truth and how near it came.

    Raises:
        ConfigError: a setting is refused, or the file cannot be written.
        ClaimRejected: a bound misses too often on a family where its assumption holds (exit code 4).
    """
    from dptrain.audit.bounds.certificate import simulate, table
    from dptrain.audit.bounds.families import build_family
    from dptrain.audit.bounds.judged import judge, keep, writable
    from dptrain.tracking.console import Progress

    started = time.monotonic()
    writable(config.into)

    # 1. Families of scores, each at exactly the epsilon asked for.
    families = [build_family(name, config.epsilon, config.delta, config.canaries) for name in config.families]

    # 2. The same scores for every bound, family by family.
    rows: list[dict[str, Any]] = []
    done = 0
    with Progress(len(families) * config.simulations, None) as progress:

        def tick() -> None:
            nonlocal done
            done += 1
            progress.update(done)

        for family in families:
            rows += simulate(
                family,
                config.bounds,
                config.canaries,
                config.simulations,
                config.delta,
                config.confidence,
                config.seed,
                tick,
            )

    # 3. The table, kept where asked, and the verdict.
    found = {"schema": "dptrain.certificate/1", "canaries": config.canaries, "delta": config.delta}
    found |= {"confidence": config.confidence, "seed": config.seed, "seconds": round(time.monotonic() - started, 1)}
    found |= {"rows": rows}
    keep(found, config.into)
    print(json.dumps(found, indent=2, allow_nan=False) if config.format == "json" else table(rows))
    judge(rows)
    return found


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain certify``."""
    launch("certify", arguments)


if __name__ == "__main__":
    sys.exit(guarded("certify", sys.argv[1:]))
