"""Whether rows of (batch, steps) at one epsilon do as well as the adviser says: the digits, public, in plain torch.

    python scripts/check_advice.py epsilon=1 hidden=0          a linear model
    python scripts/check_advice.py epsilon=3 hidden=128        one hidden layer

DP-SGD without momentum in a few lines of its own (noise by the central limit theorem, so that nothing is calibrated)
at four learning rates a row, a factor of four apart; one line a row: the mean accuracy at the best rate over the seeds,
and that rate times the steps. Nothing here is a private run: rows are public, and noise comes from a seed.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from itertools import pairwise

import torch
from torch import Tensor

from dptrain.privacy.advice import Question, Row, gaussian_mu, likely_noise

ROWS = ((512, 112), (180, 62), (180, 250), (180, 1000), (45, 500), (45, 2000), (22, 125), (22, 1000), (360, 500),
        (1437, 31), (1437, 125), (1437, 500))  # fmt: skip
TRAIN = 1437


class Net:
    """A linear model, or one hidden layer of ReLU, with gradients of each row clipped to norm 1 in closed form."""

    def __init__(self, hidden: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        sizes = [64, hidden, 10] if hidden else [64, 10]
        self.layers = [
            ((torch.rand(out, into, generator=draw) * 2 - 1) / math.sqrt(into), torch.zeros(out))
            for into, out in pairwise(sizes)
        ]
        self.draw = draw

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What each layer reads, and at last what comes out."""
        seen = [x]
        for place, (weight, bias) in enumerate(self.layers):
            out = seen[-1] @ weight.T + bias
            seen.append(out if place == len(self.layers) - 1 else torch.relu(out))
        return seen

    def step(self, x: Tensor, y: Tensor, sigma: float, batch: float, lr: float) -> None:
        """One noisy step."""
        *inputs, out = self.outputs(x)
        delta = torch.softmax(out, 1)
        delta[torch.arange(len(y)), y] -= 1
        deltas = [delta]
        for (weight, _), value in zip(self.layers[:0:-1], inputs[:0:-1], strict=True):
            deltas.insert(0, (deltas[0] @ weight) * (value > 0))
        squared = sum((d.square().sum(1) * (v.square().sum(1) + 1) for d, v in zip(deltas, inputs, strict=True)))
        factor = (1 / torch.as_tensor(squared).sqrt().clamp(min=1e-9)).clamp(max=1)[:, None]
        for (weight, bias), d, value in zip(self.layers, deltas, inputs, strict=True):
            for part, total in ((weight, (d * factor).T @ value), (bias, (d * factor).sum(0))):
                part -= lr / batch * (total + sigma * torch.randn(total.shape, generator=self.draw))


def accuracy(data: tuple[Tensor, Tensor], hidden: int, row: Row, lr: float, seed: int) -> float:
    """On the public rows, after one run."""
    (x, y), net = data, Net(hidden, seed)
    for _ in range(row.steps):
        drawn = torch.rand(TRAIN, generator=net.draw) < row.batch / TRAIN
        net.step(x[:TRAIN][drawn], y[:TRAIN][drawn], row.noise_multiplier, row.batch, lr)
    return float((net.outputs(x[TRAIN:])[-1].argmax(1) == y[TRAIN:]).float().mean())


def main() -> None:
    """See above."""
    from sklearn.datasets import load_digits

    given = {"epsilon": "1", "hidden": "0", "seeds": "2"} | dict(word.split("=", 1) for word in sys.argv[1:])
    hidden, epsilon = int(given["hidden"]), float(given["epsilon"])
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    data = torch.tensor(pixels, dtype=torch.float32)[order] / 8 - 1, torch.tensor(labels)[order]
    count = sum(weight.numel() + bias.numel() for weight, bias in Net(hidden, 0).layers)
    question = Question(
        public_size=TRAIN,
        num_parameters=count,
        epsilon=epsilon,
        delta=1e-5,
        adjacency="zero_out",
        sensitivity_slack=1e-3,
        fewest_steps=5.0,
        whole=lambda event: event,
    )
    mu = gaussian_mu(epsilon, 1e-5)
    print(f"digits, {count:,} parameters, epsilon {epsilon:g}, {given['seeds']} seeds", flush=True)
    for batch, steps in ROWS:
        row = Row(batch=batch, steps=steps, noise_multiplier=likely_noise(mu, batch / TRAIN, steps))
        found = {}
        for rate in (400 / steps, 100 / steps, 25 / steps, 6.25 / steps):
            found[rate] = statistics.fmean(
                accuracy(data, hidden, row, rate, seed) for seed in range(int(given["seeds"]))
            )
        best = max(found, key=lambda rate: found[rate])
        print(
            f"batch {batch:5d} steps {steps:5d} sigma {row.noise_multiplier:6.2f} kept {row.kept(question):4.0%} bound "
            f"{row.bound(question):.3f}: {found[best]:.1%} at lr {best:.3g} (x steps = {best * steps:g}); "
            f"{time.process_time():.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
