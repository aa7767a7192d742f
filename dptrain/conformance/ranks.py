"""Conformance over two processes: one sum, one noise vector, the same gradient on both."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dptrain.conformance.recorder import Watched, watch
from dptrain.conformance.stand import Result, Stand
from dptrain.conformance.steps import SMALL
from dptrain.data.source import Rows
from dptrain.errors import one_line

WORLD, STEPS, SECONDS = 2, 3, 60


def two_ranks(stand: Stand, wanted: bool) -> Result:
    """Units dealt out to two processes; all of them drawn by one, none by the other, and the reverse."""
    if not wanted or stand.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return Result("two ranks", None, "conform.ranks=false, not on a CPU, or no fork here")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; the children only use what was imported before.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=_rank, args=(stand, rank, folder)) for rank in range(WORLD)]
        for child in children:
            child.start()
        for child in children:
            child.join(SECONDS)
            if child.is_alive():
                child.kill()
        files = [Path(folder) / f"{rank}.pt" for rank in range(WORLD)]
        if not all(file.is_file() for file in files):
            told = [file.read_text() for file in sorted(Path(folder).glob("*.txt"))]
            says = "; ".join(["a process did not come to the end of its steps", *told[:1]])
            return Result("two ranks", False, says)
        ranks = [torch.load(file, weights_only=True) for file in files]
    return _compare(stand, ranks)


def _compare(stand: Stand, ranks: list[list[dict[str, list[Tensor]]]]) -> Result:
    worst = 0.0
    for number, shares in enumerate(zip(*ranks, strict=True), start=1):
        released = [share["released"] for share in shares]
        if any(len(r) != 1 for r in released) or not torch.equal(released[0][0], released[1][0]):
            return Result("two ranks", False, f"step {number}: the ranks release different gradients", number)
        if [len(share["noise"]) for share in shares] != [1, 0]:
            return Result("two ranks", False, f"step {number}: noise is not drawn once, by the first rank", number)
        exact = sum((share["exact"][0] for share in shares), torch.zeros(stand.count, dtype=torch.float64))
        left = released[0][0] - shares[0]["noise"][0] - exact
        size = float(left.norm()) / stand.clip
        storage = 5e-7 * float(released[0][0].norm()) / stand.clip
        allowed = stand.rows.num_units * (stand.unit_tolerance + stand.slack / 4) + stand.slack / 4 + storage
        if not size <= allowed:
            says = f"step {number}: released is {size:.2g} C from (sum over ranks + noise) / divisor"
            return Result("two ranks", False, f"{says} (tolerance {allowed:.1e})", number)
        worst = max(worst, size) if math.isfinite(size) else math.inf
    return Result("two ranks", True, f"{STEPS} steps: one noise vector, the same gradient, {worst:.1e} C from the sum")


def _rank(stand: Stand, rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        mine = torch.nonzero(stand.rows.unit_id % WORLD == rank).flatten()
        rows: Rows = stand.rows.take(mine)
        trainer = replace(stand.trainer(SMALL, STEPS, rows=rows), group=dist.group.WORLD)
        everyone = torch.arange(rows.num_units)
        draws = [everyone if rank == 0 else everyone[:0], everyone[:0] if rank == 0 else everyone, everyone]
        steps = watch(stand, trainer, stand.all_rows(rows), lambda step: draws[step])
        torch.save([_plain(step) for step in steps], f"{folder}/part-{rank}.pt")
        Path(f"{folder}/part-{rank}.pt").rename(f"{folder}/{rank}.pt")
    except Exception as error:  # for the parent to tell
        Path(f"{folder}/{rank}.txt").write_text(one_line(f"it ended in {type(error).__name__}: {error}")[:160])
    finally:
        dist.destroy_process_group()


def _plain(step: Watched) -> dict[str, list[Tensor]]:
    return {"exact": [step.exact], "noise": step.noise, "released": step.released}
