"""Every setting, typed. Hydra composes a config, these dataclasses say whether it makes sense.

Two kinds of settings live apart: ``PrivacyConfig`` (with ``data.public_size``) makes the plan and so the
guarantee; ``ClippingConfig`` and ``ExecutionConfig`` decide how fast it runs and cannot change it.

Ranges are checked when a config becomes an object (``load``), before any data is read.
This module imports neither torch nor hydra nor mlflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dptrain.config_budget import BudgetConfig, LedgerConfig
from dptrain.config_checkpoint import CheckpointConfig, KeysConfig
from dptrain.config_compare import CompareConfig, RegisterConfig
from dptrain.config_gate import GateConfig, QuarantineConfig
from dptrain.config_tracking import TrackingConfig
from dptrain.config_tuning import EvaluationConfig, ReleaseConfig, TuningConfig
from dptrain.config_verify import VerifyConfig
from dptrain.errors import ConfigError
from dptrain.ranges import choice as _choice
from dptrain.ranges import no_password
from dptrain.ranges import number as _number


@dataclass
class PrivacyConfig:
    """What is promised. Of ``epsilon``, ``noise_multiplier`` and the length (``steps`` or ``epochs``),
    exactly two are given and the third is solved for."""

    mechanism: str = "dpsgd"
    """``dpsgd``, or ``none`` for a non-private baseline of the same recipe (stamped as such)."""
    epsilon: float | None = 3.0
    """Target epsilon, above 0."""
    delta: float = 1e-5
    """Target delta, in (0, 1), and below 1 / data.public_size."""
    noise_multiplier: float | None = None
    """Noise standard deviation as a multiple of the sensitivity, above 0."""
    clipping_norm: float = 1.0
    """Largest norm of one unit's contribution to a step, in [1e-9, 1e9]."""
    expected_batch_size: float = 256
    """Expected number of units in a draw; the public divisor of a step. At least 1."""
    steps: int | None = None
    """Number of steps, at least 1. Give this or ``epochs``."""
    epochs: float | None = 10.0
    """Length in expected passes over the public size, above 0. Give this or ``steps``."""
    unit: str = "record"
    """Whose presence is protected: ``record``, or ``user`` (all rows with one value of data.unit_column)."""
    max_rows_per_unit: int = 1
    """With unit=user: rows kept of one user, at least 1. The rest are left out before training."""
    adjacency: str = "zero_out"
    """``zero_out`` (number of units is public) or ``add_remove`` (it is not; declare data.public_size)."""
    noise: str = "secure"
    """``secure`` (AES keystream, exact rounded Gaussian on an integer grid) or ``fast`` (floating point)."""
    sensitivity_slack: float = 1e-3
    """Sensitivity is priced as clipping_norm * (1 + slack); rounding and arithmetic live in the slack. [1e-6, 0.1]."""
    allow_large_delta: bool = False
    """Accept a delta of 1 / data.public_size or more (one unit may then be published outright)."""

    def __post_init__(self) -> None:
        _choice("privacy.mechanism", self.mechanism, ["dpsgd", "none"])
        _number("privacy.epsilon", self.epsilon, low=0, low_open=True)
        _number("privacy.delta", self.delta, low=0, high=1, low_open=True, high_open=True)
        _number(
            "privacy.noise_multiplier",
            self.noise_multiplier,
            low=0,
            low_open=True,
            remedy="choose a positive value, or privacy=off for training without privacy",
        )
        _number("privacy.clipping_norm", self.clipping_norm, low=1e-9, high=1e9)
        _number("privacy.expected_batch_size", self.expected_batch_size, low=1)
        _number("privacy.steps", self.steps, low=1)
        _number("privacy.epochs", self.epochs, low=0, low_open=True)
        _choice("privacy.unit", self.unit, ["record", "user"])
        _number("privacy.max_rows_per_unit", self.max_rows_per_unit, low=1)
        _choice("privacy.adjacency", self.adjacency, ["zero_out", "add_remove"])
        _choice("privacy.noise", self.noise, ["secure", "fast"])
        _number("privacy.sensitivity_slack", self.sensitivity_slack, low=1e-6, high=0.1)
        if self.unit == "record" and self.max_rows_per_unit != 1:
            raise ConfigError(
                "privacy.max_rows_per_unit", self.max_rows_per_unit, "a record is one row", "set privacy.unit=user"
            )
        self._check_solvable()

    def _check_solvable(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                "privacy.steps", self.steps, f"privacy.epochs={self.epochs} is set too", "set privacy.epochs=null"
            )
        has_length = self.steps is not None or self.epochs is not None
        if self.mechanism == "none":
            if not has_length:
                raise ConfigError("privacy.steps", None, "the length of training is not set", "set privacy.epochs")
            return
        given = [self.epsilon is not None, self.noise_multiplier is not None, has_length]
        if sum(given) == 3:
            raise ConfigError(
                "privacy.noise_multiplier",
                self.noise_multiplier,
                "privacy.epsilon and the length are set too, and exactly one of the three is solved for",
                "set privacy.epsilon=null to have epsilon computed, or privacy.epochs=null to have steps solved for",
            )
        if sum(given) < 2:
            raise ConfigError(
                "privacy",
                f"epsilon={self.epsilon} noise_multiplier={self.noise_multiplier}",
                "two of epsilon, noise_multiplier and steps (or epochs) are needed",
                "set one more",
            )

    @property
    def is_private(self) -> bool:
        """Whether the run promises anything."""
        return self.mechanism != "none"


@dataclass
class ColumnConfig:
    """One column of a table, declared and never learnt: give ``low`` and ``high``, or ``categories``."""

    low: float | None = None
    """Public lower bound; values are clamped to it and mapped to -1."""
    high: float | None = None
    """Public upper bound; values are clamped to it and mapped to +1."""
    categories: list[str] | None = None
    """Public list of values, encoded one-hot; a value outside it encodes as all zeros."""


@dataclass
class DataConfig:
    """Which data, and the public facts about it."""

    name: str = "digits"
    """A registered source: digits, mnist, fashion_mnist, adult, csv, parquet, image_folder or a user's own."""
    path: str | None = None
    """File or folder of the source; shipped sources default to ``data/``."""
    public_size: int | None = None
    """Declared number of training units, at least 2. Sets q; never read off the private rows."""
    public_path: str | None = None
    """File with rows declared public (evaluation). For tables without one: ``public_fraction``."""
    public_fraction: float | None = None
    """Share of rows, in (0, 1), set aside as public evaluation rows by a seeded split that ignores their content."""
    label: str | None = None
    """Column with the target (tables)."""
    classes: list[str] | None = None
    """Declared class names, in order (tables and image folders)."""
    task: str | None = None
    """binary, multiclass or regression; shipped sources know theirs."""
    target_low: float | None = None
    """Regression: public lower bound of the target (clamped)."""
    target_high: float | None = None
    """Regression: public upper bound of the target (clamped)."""
    columns: dict[str, ColumnConfig] = field(default_factory=dict)
    """Feature columns of a table with their declared bounds or categories."""
    unit_column: str | None = None
    """Column that names the user; needed by privacy.unit=user."""
    image_size: list[int] | None = None
    """Image folders: [channels, height, width] that pictures are converted to."""
    all_public: bool = False
    """Declares that the training rows, too, are public or synthetic: runs on them need no account."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of the source's own function."""

    def __post_init__(self) -> None:
        _number("data.public_size", self.public_size, low=2)
        _number("data.public_fraction", self.public_fraction, low=0, high=1, low_open=True, high_open=True)
        if self.task is not None:
            _choice("data.task", self.task, ["binary", "multiclass", "regression"])


@dataclass
class ModelConfig:
    """Which model."""

    name: str = "mlp"
    """A registered model: linear, mlp, tanh_cnn, wrn or a user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model's function."""
    features: str = "none"
    """A fixed, data-independent map applied once to every row and cached: none, scatter or a user's own."""
    replace_batchnorm: bool = False
    """Replace every BatchNorm layer, which mixes units, by GroupNorm of at most 32 groups."""


@dataclass
class TaskConfig:
    """What is learnt and how it is judged."""

    loss: str = "auto"
    """A registered loss giving one value a row: cross_entropy, binary_cross_entropy, mse, mae, huber; auto by task."""
    class_weights: list[float] | None = None
    """Public weight of each class, each above 0; never derived from private counts."""
    metrics: list[str] = field(default_factory=list)
    """Metrics on the public split: accuracy, auroc, average_precision, f1, log_loss, mae, rmse. Empty: by task."""

    def __post_init__(self) -> None:
        for weight in self.class_weights or []:
            _number("task.class_weights", weight, low=0, low_open=True)


@dataclass
class OptimizerConfig:
    """Any optimizer that torch.optim has by this name; what it does with a noisy gradient is post-processing."""

    name: str = "sgd"
    """sgd, adam, adamw, adagrad, rmsprop, nadam, radam or another of torch.optim, or a user's own."""
    lr: float = 0.5
    """Learning rate, above 0."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keywords of the optimizer (momentum, weight_decay, betas)."""
    schedule: str = "constant"
    """Learning rate over the planned steps: constant, linear (to 0) or cosine (to 0)."""
    warmup_steps: int = 0
    """Steps of linear warm-up before the schedule, at least 0."""

    def __post_init__(self) -> None:
        _number("optimizer.lr", self.lr, low=0, low_open=True)
        _choice("optimizer.schedule", self.schedule, ["constant", "linear", "cosine"])
        _number("optimizer.warmup_steps", self.warmup_steps, low=0)


@dataclass
class ClippingConfig:
    """How clipped sums are computed. Changes speed, never the guarantee."""

    engine: str = "auto"
    """auto (bookkeeping), bookkeeping, vmap (torch.func, any model), opacus_hooks, opacus_ghost (Opacus' two ways, for
    comparison) or loop (one unit at a time, for checks). ``dptrain bench`` times them on the model at hand."""


@dataclass
class ExecutionConfig:
    """How the work is laid on the machine. Changes speed, never the guarantee."""

    physical_batch_size: int = 256
    """Rows that go through the model at once, at least 1."""
    dtype: str = "float32"
    """float32, bfloat16 (autocast; parameters and sums stay wide) or float64."""
    device: str = "auto"
    """auto (CUDA when present), cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads of torch, at least 1; None leaves torch's choice."""
    memory_limit: int | None = None
    """MiB that the engine bookkeeping may hold for its sum, at least 1; None: a quarter of the free memory."""

    def __post_init__(self) -> None:
        _number("execution.physical_batch_size", self.physical_batch_size, low=1)
        _choice("execution.dtype", self.dtype, ["float32", "bfloat16", "float64"])
        _number("execution.threads", self.threads, low=1)
        _number("execution.memory_limit", self.memory_limit, low=1)
        device = self.device.split(":")
        _choice("execution.device", device[0], ["auto", "cpu", "cuda"])


@dataclass
class RunConfig:
    """The run's own folder and name."""

    id: str | None = None
    """Letters, digits, '.', '_' and '-'; default: time of launch and a random suffix."""
    dir: str | None = None
    """Folder of this run; default ``runs/<run_id>``. Must be absent or empty."""
    purpose: str | None = None
    """What it spends for: debug (public or synthetic data only: free), trial, final, evaluation or audit. Private data
    without one is refused; public data without one is debug."""

    def __post_init__(self) -> None:
        if self.purpose is not None:
            _choice("run.purpose", self.purpose, ["debug", "trial", "final", "evaluation", "audit"])


@dataclass
class TrainConfig:
    """Root of ``dptrain train`` and ``dptrain plan``."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: str | None = None
    """Folder of a run that was stopped or killed: it goes on with its own settings, whatever else stands here."""
    imports: list[str] = field(default_factory=list)
    """The user's own Python files or modules, whose functions register themselves."""
    allow_nonprivate_metrics: list[str] = field(default_factory=list)
    """Internal metrics to publish all the same (batch_size, clipped_share, member_loss); stamps the statement."""
    seed: int = 0
    """Fixes initialisation, splits and public shuffles. Draws and noise never depend on it."""

    def __post_init__(self) -> None:
        _number("seed", self.seed, low=0, high=2**32 - 1)
        for name in self.allow_nonprivate_metrics:
            _choice("allow_nonprivate_metrics", name, ["batch_size", "clipped_share", "member_loss"])


@dataclass
class AuditSettings:
    """How the attack is carried out."""

    fpr: list[float] = field(default_factory=lambda: [0.01, 0.001])
    """False-positive rates at which the true-positive rate is wanted, each in (0, 1)."""
    confidence: float = 0.95
    """Coverage of the intervals, in [0.5, 1)."""
    max_rows: int = 20_000
    """Most member rows (and non-member rows) scored, drawn by seed; at least 10."""

    def __post_init__(self) -> None:
        for rate in self.fpr:
            _number("audit.fpr", rate, low=0, high=1, low_open=True, high_open=True)
        _number("audit.confidence", self.confidence, low=0.5, high=1, high_open=True)
        _number("audit.max_rows", self.max_rows, low=10)


@dataclass
class AuditConfig:
    """Root of ``dptrain audit``."""

    run: str = "???"
    """Folder of a finished run."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    imports: list[str] = field(default_factory=list)
    """The user's own files, where the run used some; never taken from the run folder."""
    tracking_uri: str | None = None
    """Server to copy results to; a server that only the run folder names is not spoken to."""
    seed: int = 0


@dataclass
class ReportConfig:
    """Root of ``dptrain report``."""

    run: str | None = None
    """Folder of a finished run. Give this or ``dataset``."""
    dataset: str | None = None
    """Name of a budget account: the page of everything that was spent on these people."""
    runs: str = "runs"
    """With dataset: folder that the account's runs lie in."""
    ledger_uri: str | None = None
    """With dataset: the ledger; null (``ledger.db`` in DPTRAIN_HOME), ``sqlite:///FILE`` or ``postgresql+psycopg://...``."""
    into: str | None = None
    """With dataset: the page; null for ``budget-NAME.html`` here."""
    tracking_uri: str | None = None
    """Server to copy the page to; a server that only the run folder names is not spoken to."""
    tier: str = "internal"
    """internal (everything, stays in the building) or public (what may be shown)."""

    def __post_init__(self) -> None:
        _choice("tier", self.tier, ["internal", "public"])
        no_password("ledger_uri", self.ledger_uri)
        if self.run is None and self.dataset is None:
            raise ConfigError("run", None, "is needed", "give run=runs/RUN, or dataset=NAME for a budget account")
        if self.dataset is not None and self.run is not None:
            raise ConfigError("dataset", self.dataset, "run is set too", "ask for one page at a time")
        if self.dataset is not None and self.tier == "public":
            raise ConfigError("tier", self.tier, "an account's page is internal", "leave tier out")


ROOTS: dict[str, type] = {
    "train": TrainConfig,
    "plan": TrainConfig,
    "audit": AuditConfig,
    "report": ReportConfig,
    "budget": BudgetConfig,
    "compare": CompareConfig,
    "register": RegisterConfig,
    "verify": VerifyConfig,
    "data": QuarantineConfig,
    "keys": KeysConfig,
}
"""Command -> root dataclass."""
