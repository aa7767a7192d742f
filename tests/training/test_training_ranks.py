"""The loop over several processes: one clipped sum, one noise, the same weights everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch import nn

from dptrain.config import ExecutionConfig, PrivacyConfig, TrainConfig
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.privacy.plan import compile_plan
from dptrain.training.assemble import build_trainer
from dptrain.training.losses import cross_entropy
from dataclasses import replace

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
group = None
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    group = dist.group.WORLD
torch.manual_seed(0)
module = nn.Linear(5, 3)
generator = torch.Generator().manual_seed(1)
rows = Rows(torch.randn(40, 5, generator=generator), torch.arange(40) % 3)
mine = rows.take(torch.arange(40)[rank::world])
privacy = PrivacyConfig(
    epsilon=None, noise_multiplier=1.0, steps=3, epochs=None, expected_batch_size=40, allow_large_delta=True
)
config = TrainConfig(privacy=privacy, execution=ExecutionConfig(physical_batch_size=16))
plan = compile_plan(privacy, 40)
trainer = build_trainer(config, plan, module, mine, cross_entropy, Keystream(rank=0, test_key=bytes(32)))
trainer = replace(trainer, group=group)
trainer.run(lambda *_: None)
torch.save([p.detach() for p in module.parameters()], f"{folder}/weights-{world}-{rank}.pt")
if group is not None:
    dist.destroy_process_group()
"""


def launch(world: int, folder: Path) -> list[list[torch.Tensor]]:
    """Trains on ``world`` processes, units dealt out among them (q = 1: every draw holds everyone)."""
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(world), str(folder)]) for rank in range(world)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0] * world
    return [torch.load(folder / f"weights-{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def test_two_ranks_release_what_one_does(tmp_path: Path) -> None:
    (alone,) = launch(1, tmp_path)
    together = launch(2, tmp_path)
    for one, other in zip(*together, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(alone, together[0], strict=True):
        # Sums are whole numbers: the order in which ranks add them changes nothing, kernels a rounding or two.
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
