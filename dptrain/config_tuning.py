"""Settings of evaluation, of the choice of a checkpoint, and of tuning that is charged."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.ranges import choice, number

STRATEGIES = ["random", "grid", "composed"]


@dataclass
class EvaluationConfig:
    """When a model is looked at while it trains, and on whose rows."""

    every: int | None = None
    """Steps between looks, at least 1; None: twenty times a run."""
    batch_size: int = 1024
    """Rows at once during evaluation, at least 1."""
    metrics: str = "public"
    """``public``: on rows declared public, free. ``dp``: besides, a noisy count of right answers on private units held
    out from training; every look is planned and charged."""
    private_fraction: float = 0.1
    """With metrics=dp: share of the private units held out, in (0, 0.5]."""
    noise_multiplier: float = 20.0
    """With metrics=dp: standard deviation of the noise on a count, in units, in [0.1, 10,000]."""

    def __post_init__(self) -> None:
        number("evaluation.every", self.every, low=1)
        number("evaluation.batch_size", self.batch_size, low=1, high=2**31 - 1)
        choice("evaluation.metrics", self.metrics, ["public", "dp"])
        number("evaluation.private_fraction", self.private_fraction, low=0, high=0.5, low_open=True)
        number("evaluation.noise_multiplier", self.noise_multiplier, low=0.1, high=1e4)


@dataclass
class ReleaseConfig:
    """Which of the models that a run goes through is released."""

    choose: str = "last"
    """``last`` step, or ``best`` of the looks: by the first metric on public rows, or with evaluation.metrics=dp by the
    noisy count on private ones."""

    def __post_init__(self) -> None:
        choice("release.choose", self.choose, ["last", "best"])


@dataclass
class TuningConfig:
    """How ``--multirun`` searches settings, and who pays for it. See docs/tuning.md."""

    strategy: str | None = None
    """``random``: the best of a secret, random number of trials; only the winner is seen. ``grid``: every combination
    once; all may be seen, all are charged. ``composed``: each job is a run of its own, charged for itself."""
    trials_distribution: str = "geometric"
    """random: law of the number of trials; geometric, logarithmic, poisson or truncated_negative_binomial."""
    mean_trials: float | None = None
    """random: expected number of trials, above 1 and at most 10,000."""
    eta: float | None = None
    """random, with truncated_negative_binomial: its shape, in [0, 100]."""
    score: str | None = None
    """Metric on the public rows that decides; null: the first of task.metrics, or of the task's usual ones."""
    label: str | None = None
    """Name of the sweep in the ledger, at most 80 characters; what bears one name is one bar of the budget report.
    null: the kind of sweep and the time of its launch, or its run."""
    public: bool = False
    """Declares that the sweep trains and is judged on public or synthetic rows only: it is free, and the statement
    says so. Refused where the data is private."""

    def __post_init__(self) -> None:
        if self.strategy is not None:
            choice("tuning.strategy", self.strategy, STRATEGIES)
        choice(
            "tuning.trials_distribution",
            self.trials_distribution,
            ["geometric", "logarithmic", "poisson", "truncated_negative_binomial"],
        )
        number("tuning.mean_trials", self.mean_trials, low=1, high=10_000)
        if self.label is not None and not 0 < len(self.label.strip()) <= 80:
            raise ConfigError("tuning.label", self.label[:90], "must have 1 to 80 characters", "shorten it")
        number("tuning.eta", self.eta, low=0, high=100)
        if self.public and self.strategy is not None:
            raise ConfigError(
                "tuning.public", True, f"tuning.strategy={self.strategy} is set too", "a free sweep needs no strategy"
            )
        if self.strategy == "random" and self.mean_trials is None:
            raise ConfigError(
                "tuning.mean_trials",
                "null",
                "a random search needs its expected number of trials",
                "set tuning.mean_trials=20, say",
            )
