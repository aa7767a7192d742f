"""Does the claim check reject leaky checkpoints, and leave honest ones alone? Real runs, real audits.

    python scripts/audit_claim.py --leaky 20 --honest 300 --out claim.jsonl
    python scripts/audit_claim.py --table claim.jsonl

A leaky run adds noise of a quarter of the size that its plan says; nothing else differs, its statement says what an
honest one says, and the self-check, which would stop it, is off, with no record of it. Both kinds are trained by the
recipe of ``dptrain train`` and audited by that of ``dptrain audit``. The data are made up and public (10 classes, 5,000
rows).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dptrain.audit.intervals import proportion_high
from dptrain.cli import recipe
from dptrain.compose import compose
from dptrain.config_data import DataConfig
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ClaimRejected
from dptrain.privacy.plan import Plan
from dptrain.registry import sources
from dptrain.training import assemble

SIZE, PUBLIC, FEATURES, CLASSES = 5000, 1000, 1000, 10
LEAK = 0.25
"""Share of the noise that a leaky run adds."""
TRAIN = [
    "data=own",
    "data.name=made_up",
    "data.all_public=true",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=4.2",
    "privacy.epochs=null",
    "privacy.steps=100",
    "privacy.expected_batch_size=500",
    "execution.physical_batch_size=1024",
    "optimizer.lr=4",
    "evaluation.every=100",
    "gate=off",
    "checkpoint.every=0",
    "tracking=none",
    "selfcheck.enabled=false",
]


@sources.register("made_up")
def made_up(config: DataConfig, seed: int) -> Source:
    """Ten clusters in fifty of a thousand features; the others are 0, as in sparse tables."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(20)
        y = torch.randint(0, CLASSES, (SIZE + PUBLIC,), generator=generator)
        x = torch.zeros(SIZE + PUBLIC, FEATURES)
        centres = 0.4 * torch.randn(CLASSES, 50, generator=generator)
        x[:, :50] = centres[y] + 0.3 * torch.randn(len(y), 50, generator=generator)
        return Splits(train=Rows(x[:SIZE], y[:SIZE]), public=Rows(x[SIZE:], y[SIZE:]))

    info = SourceInfo(
        name="made_up",
        task="multiclass",
        input_shape=(FEATURES,),
        num_classes=CLASSES,
        public_size=SIZE,
        is_public=True,
    )
    return Source(info, load)


@contextlib.contextmanager
def leaking(share: float) -> Iterator[None]:
    """Noise of ``share`` of the planned size, behind the plan's back."""
    honest = assemble.build_noise

    def less(plan: Any, *arguments: Any) -> Any:
        noise = honest(plan, *arguments)
        draw, pieces = noise.draw, noise.pieces
        noise.draw = lambda step, count: draw(step, count) * share  # type: ignore[method-assign]
        noise.pieces = lambda step, count: (piece * share for piece in pieces(step, count))  # type: ignore[method-assign]
        return noise

    assemble.build_noise = less
    try:
        yield
    finally:
        assemble.build_noise = honest


def price_once() -> None:
    """What is priced for show (the odometer, epsilon at other deltas) is the same in every run, and computed once."""
    for name in ("epsilon_at", "odometer"):
        honest, known = getattr(Plan, name), {}

        def once(*given: Any, honest: Any = honest, known: dict[str, Any] = known) -> Any:
            key = repr(given)
            if key not in known:
                known[key] = honest(*given)
            return list(known[key])

        setattr(Plan, name, once)


def one(leak: bool, seed: int, canaries: int, level: float) -> dict[str, Any]:
    """Trains and audits one run; what was found."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as room, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(room, "run")
        settings = [*TRAIN, f"audit.canaries={canaries}", f"seed={seed}", f"run.dir={folder}"]
        with contextlib.redirect_stderr(io.StringIO()), leaking(LEAK) if leak else contextlib.nullcontext():
            result = recipe("train").run(compose("train", settings))
        trained = time.process_time()
        code = 0
        try:
            recipe("audit").run(compose("audit", [f"run={folder}", f"audit.level={level}"]))
        except ClaimRejected:
            code = 4
        found = json.loads((folder / "internal" / "audit.json").read_text())
    check = found["claim_check"]
    return {
        "leak": leak,
        "seed": seed,
        "rejected": check["rejected"],
        "exit_code": code,
        "p_value": check["test"]["p_value"],
        "right": [check["test"]["details"]["right"], check["test"]["details"]["guesses"]],
        "bounds": {bound["name"]: round(bound["epsilon"], 3) for bound in check["bounds"]},
        "independent_p_value": check["independent_test"]["p_value"],
        "epsilon_claimed": check["epsilon_claimed"],
        "accuracy": result["metrics"].get("test_accuracy"),
        "canaries": canaries,
        "level": level,
        "train_seconds": round(trained - start, 2),
        "audit_seconds": round(time.process_time() - trained, 2),
    }


def table(path: Path) -> None:
    """What the runs in a file say together."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    for leak in (True, False):
        some = [run for run in runs if run["leak"] is leak]
        if not some:
            continue
        rejected = sum(run["rejected"] for run in some)
        values = sorted(run["p_value"] for run in some)
        cost = sum(run["train_seconds"] + run["audit_seconds"] for run in some) / len(some)
        means = {name: sum(run["bounds"][name] for run in some) / len(some) for name in some[0]["bounds"]}
        print(
            f"{'leaky' if leak else 'honest'}: {rejected} of {len(some)} rejected (level {some[0]['level']:g}, "
            f"{some[0]['canaries']} canaries, claimed {some[0]['epsilon_claimed']:.3f}); exit code 4: "
            f"{sum(run['exit_code'] == 4 for run in some)}; p from {values[0]:.2g} to {values[-1]:.2g}, median "
            f"{values[len(values) // 2]:.2g}; at most {proportion_high(rejected, len(some), 0.05):.2%} (95 %)"
        )
        print("  means:", {name: round(value, 3) for name, value in means.items()}, f"{cost:.2f} CPU s a run")
        print("  accuracy on public rows:", round(sum(run["accuracy"] for run in some) / len(some), 4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaky", type=int, default=20)
    parser.add_argument("--honest", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--canaries", type=int, default=4000)
    parser.add_argument("--level", type=float, default=0.01)
    parser.add_argument("--out", type=Path, default=Path("claim.jsonl"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table is not None:
        table(given.table)
        return 0
    os.environ.setdefault("DPTRAIN_HOME", tempfile.mkdtemp())
    torch.set_num_threads(1)
    price_once()
    for leak, count in ((True, given.leaky), (False, given.honest)):
        for seed in range(given.first_seed, given.first_seed + count):
            with given.out.open("a") as file:
                file.write(json.dumps(one(leak, seed, given.canaries, given.level)) + "\n")
    table(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
