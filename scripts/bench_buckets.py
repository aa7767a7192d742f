"""What padding to public length buckets saves: clipped sums of draws of short texts, with and without, by turns.

    python scripts/bench_buckets.py path=data/models/minilm length=64 pairs=5

The model is a folder of weights with a LoRA adapter; texts are made up: random ids, log-normal lengths, a median of 18
tokens (a text message) and a standard deviation of 0.6 on the log scale, between 3 and the bound. CPU time of a draw's
clipped sum by the default engine in physical batches of 32; median of the pairs' ratios with its range.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from dptrain.compose import compose
from dptrain.data.batches import UnitIndex, physical_batches
from dptrain.data.length_buckets import buckets_for
from dptrain.data.source import Rows
from dptrain.gradients.protocol import ClippingRule, trainable
from dptrain.training.assemble import build_engine, lengths_of
from dptrain.training.setup import prepare

DRAW, TEXTS = 128, 2048


def texts(length: int, vocabulary: int, pad: int) -> Rows:
    """Made-up rows of ids, padded behind their end."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(TEXTS, generator=generator)
    own = (18 * torch.exp(0.6 * spread)).round().clamp(3, length)
    ids = torch.randint(1000, vocabulary, (TEXTS, length), generator=generator)
    ids[torch.arange(length) >= own[:, None]] = pad
    print(f"{TEXTS} texts of {float(own.mean()):.1f} tokens on average, at most {length}")
    return Rows(ids, torch.arange(TEXTS) % 2)


def main() -> None:
    """See above."""
    given = {"path": "data/models/minilm", "length": "64", "pairs": "5", "train": "lora"}
    given |= dict(word.split("=", 1) for word in sys.argv[1:])
    about = [f"data.text.tokenizer={given['path']}", f"data.text.max_length={given['length']}", "run.purpose=trial"]
    about += [f"model.path={given['path']}", f"finetune.train={given['train']}", "ledger.uri=none", "tracking=none"]
    about += ["privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=10"]
    setup = prepare(compose("finetune", ["data=sms_spam", "model=hf", *about]), check_folder=False)
    module = setup.module.train()
    rows = texts(int(given["length"]), int(getattr(module, "vocabulary")), int(getattr(module, "pad")))  # noqa: B009
    index = UnitIndex(rows.unit_id)
    lengths = lengths_of(setup.config, module, rows, index)
    assert lengths is not None
    print(
        f"buckets {buckets_for(int(given['length']), None)}, physical batches of 32, draws of {DRAW}, {given['train']}"
    )
    engine = build_engine(setup.config, module, setup.row_loss, ClippingRule(1.0, None))
    total = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)

    def seconds(draw: torch.Tensor, cut: torch.Tensor | None) -> float:
        began = time.process_time()
        total.zero_()
        for batch in physical_batches(draw, rows, index, 32, None, cut):
            engine.add_clipped_sum(batch, total)
        return time.process_time() - began

    generator = torch.Generator().manual_seed(1)
    ratios = []
    for pair in range(-1, int(given["pairs"])):
        draw = torch.randperm(TEXTS, generator=generator)[:DRAW].sort().values
        plain = seconds(draw, None)
        whole = total.clone()
        short = seconds(draw, lengths)
        apart = float((total - whole).norm()) / DRAW
        name = "warm-up" if pair < 0 else f"pair {pair + 1}"
        print(f"{name}: padded {plain:.2f} s, buckets {short:.2f} s; {apart:.1e} C a unit apart", flush=True)
        if pair >= 0:
            ratios.append(short / plain)
    print(
        f"buckets / padded: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], {len(ratios)} pairs"
    )


if __name__ == "__main__":
    main()
