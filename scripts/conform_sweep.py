"""False alarms of ``dptrain conform``: honest combinations of engine, dtype, noise, model, units and optimizer.

    python scripts/conform_sweep.py combinations rows=FILE     every combination once, every check but those of chance
    python scripts/conform_sweep.py laws rows=FILE [runs=200]  the checks of chance alone, over and over
    python scripts/conform_sweep.py whole rows=FILE [runs=10]  all checks at their default size, and their CPU time

Prints Markdown. Rows are added to FILE as they come, and a run that was cut off goes on from them. Every combination is
one that ``dptrain train`` takes; those that it declines (an engine that cannot run a model) are counted apart.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mutants import BASE, Rows, spelled
from torch import Tensor, nn

from dptrain.compose import compose
from dptrain.conformance.kit import chance_checks, exact_checks, open_conform, run_checks
from dptrain.conformance.long_runs import long_runs
from dptrain.conformance.stand import Stand, build_stand
from dptrain.conformance.steps import selfchecked_run
from dptrain.data.source import Source, SourceInfo, Splits
from dptrain.errors import ConfigError, one_line
from dptrain.registry import models, sources

ENGINES = ("bookkeeping", "vmap", "opacus_hooks", "opacus_ghost", "loop")
DTYPES = ("float32", "bfloat16", "float64")
MODELS = {
    "linear": ("model=linear",),
    "mlp": ("model=mlp", "model.options.hidden=[32]"),
    "scatter_linear": ("model=scatter_linear", "data=own", "data.name=sweep_pictures"),
    "tanh_cnn": ("model=tanh_cnn", "data=own", "data.name=sweep_pictures"),
    "tokens": ("model=own", "model.name=sweep_tokens", "data=own", "data.name=sweep_ids"),
}


@models.register("sweep_tokens")
def token_model(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """An embedding, layer normalisation and attention."""
    return _Tokens(num_outputs)


class _Tokens(nn.Module):
    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(20, 16, padding_idx=0), nn.LayerNorm(16)
        self.mixed, self.last = nn.Linear(16, 48), nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        q, k, v = self.mixed(self.norm(self.table(ids))).chunk(3, dim=-1)
        return self.last(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


def _source(name: str, shape: tuple[int, ...], **facts: Any) -> Callable[[Any, int], Source]:
    def load() -> Splits:
        raise AssertionError("no row is read")

    def build(config: Any, seed: int) -> Source:
        info = SourceInfo(
            name=name, task="multiclass", input_shape=shape, num_classes=4, public_size=600, is_public=True, **facts
        )
        return Source(info, load)

    return build


sources.register("sweep_pictures")(_source("sweep_pictures", (1, 16, 16)))
sources.register("sweep_ids")(_source("sweep_ids", (8,), vocabulary=20))


def combinations() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and settings of each."""
    for name, words in {
        "adamw": ("optimizer=adamw",),
        "momentum": ("optimizer=sgd", "optimizer.options={momentum: 0.9}"),
        "C 0.01": ("privacy.clipping_norm=0.01",),
        "C 100": ("privacy.clipping_norm=100",),
        "s 1e-4": ("privacy.sensitivity_slack=1e-4",),
        "s 1e-2": ("privacy.sensitivity_slack=1e-2",),
        "sigma 0.6": ("privacy.noise_multiplier=0.6",),
        "sigma 8": ("privacy.noise_multiplier=8",),
        "add_remove": ("privacy.adjacency=add_remove", "data.public_size=1437"),
        "100 units": ("conform.units=100",),
        "physical batches of 700": ("execution.physical_batch_size=700",),
        "self-check off": ("selfcheck.enabled=false",),
    }.items():
        for dtype in ("float32", "bfloat16"):
            yield f"mlp {name} {dtype}", (*MODELS["mlp"], *words, f"execution.dtype={dtype}")
    for noise, dtype, engine, model in itertools.product(("secure", "fast"), DTYPES, ENGINES, MODELS):
        words = (*MODELS[model], f"clipping.engine={engine}", f"execution.dtype={dtype}", f"privacy.noise={noise}")
        yield f"{model} {engine} {dtype} {noise}", (*words, "privacy.expected_batch_size=16")


def stand_of(settings: Sequence[str]) -> tuple[Stand, Any]:
    """What the checks run on."""
    config = compose("conform", spelled([*BASE, *settings]))
    return build_stand(open_conform(config), config), config


def examined(settings: Sequence[str], whole: bool) -> dict[str, Any]:
    """Every check of one combination, or those that chance has no part in and a run with the self-check on."""
    torch.manual_seed(0)
    began = time.process_time()
    try:
        stand, config = stand_of(settings)
        results = list(run_checks(stand, config) if whole else [*exact_checks(stand), selfchecked_run(stand, 16)])
    except ConfigError as error:
        return {"refused": one_line(str(error)), "failed": [], "passed": 0, "seconds": time.process_time() - began}
    except Exception as error:  # a combination that nobody refuses may end in anything
        told = one_line(f"{type(error).__name__}: {error}")
        return {"refused": "", "failed": [f"crash: {told}"], "passed": 0, "seconds": time.process_time() - began}
    return {
        "refused": "",
        "failed": [f"{one.check}: {one.says}" for one in results if one.passed is False],
        "passed": sum(one.passed is True for one in results),
        "seconds": time.process_time() - began,
    }


def show_combinations(rows: Rows) -> None:
    """One line a model and dtype: engines that pass, are declined, or are accused."""
    for name, settings in combinations():
        if name not in rows.kept:
            rows.keep(name, examined(settings, whole=False))
    accused = {name: row for name, row in rows.kept.items() if row["failed"]}
    ran = {name: row for name, row in rows.kept.items() if not row["refused"]}
    print(f"{len(rows.kept)} combinations, {len(ran)} run, {len(accused)} accused,", end=" ")
    print(f"{sum(row['passed'] + len(row['failed']) for row in ran.values())} checks\n")
    print("|model|dtype|" + "|".join(ENGINES) + "|\n|---|---|" + "---|" * len(ENGINES))
    for model, dtype in itertools.product(MODELS, DTYPES):
        cells = []
        for engine in ENGINES:
            found = [rows.kept[f"{model} {engine} {dtype} {noise}"] for noise in ("secure", "fast")]
            bad = Counter(one.split(":")[0] for row in found for one in row["failed"])
            cells.append("declined" if any(row["refused"] for row in found) else ", ".join(bad) or "passes")
        print(f"|{model}|{dtype}|{'|'.join(cells)}|")
    others = [name for name in rows.kept if name.split()[1] not in ENGINES]
    print(f"\nOthers that pass: {', '.join(name for name in others if name in ran and name not in accused)}")
    for name, row in rows.kept.items():
        if row["failed"] or row["refused"]:
            print(f"- {name}: {row['refused'] or '; '.join(row['failed'])}")


def show_laws(rows: Rows, runs: int) -> None:
    """How often a check of chance accuses honest noise and draws."""
    stand, config = stand_of(())
    for number in range(runs):
        if str(number) in rows.kept:
            continue
        results = [*chance_checks(stand, config), *long_runs(stand)]
        rows.keep(str(number), {"failed": [one.check for one in results if one.passed is False]})
    failed = Counter(check for row in rows.kept.values() for check in row["failed"])
    print(f"{len(rows.kept)} runs of the checks of chance: false alarms {dict(failed) or 'none'}")


def show_whole(rows: Rows, runs: int) -> None:
    """All checks as a user runs them."""
    for number in range(runs):
        if str(number) not in rows.kept:
            rows.keep(str(number), examined((), whole=True))
    seconds = sorted(row["seconds"] for row in rows.kept.values())
    failed = sum(bool(row["failed"]) for row in rows.kept.values())
    print(f"{len(seconds)} runs, {failed} accused; CPU {seconds[len(seconds) // 2]:.1f} s (median; without the ranks')")


def main(words: Sequence[str]) -> int:
    """Runs one of the three."""
    what, options = words[0], dict(word.split("=", 1) for word in words[1:])
    torch.set_num_threads(1)
    rows = Rows(options.get("rows"))
    {
        "combinations": lambda: show_combinations(rows),
        "laws": lambda: show_laws(rows, int(options.get("runs", 200))),
        "whole": lambda: show_whole(rows, int(options.get("runs", 10))),
    }[what]()
    return 1 if any(row["failed"] for row in rows.kept.values()) else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("DPTRAIN_HOME", home)
        sys.exit(main(sys.argv[1:]))
