"""Every setting, typed. Hydra composes a config, these dataclasses say whether it makes sense.

Two kinds of settings live apart: ``PrivacyConfig`` (with ``data.public_size``) makes the plan and so the
guarantee; ``ClippingConfig`` and ``ExecutionConfig`` decide how fast it runs and cannot change it.

Ranges are checked when a config becomes an object (``load``), before any data is read.
This module imports neither torch nor hydra nor mlflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dptrain.config_audit import AuditConfig
from dptrain.config_budget import BudgetConfig, LedgerConfig
from dptrain.config_canaries import CanaryConfig
from dptrain.config_certify import CertifyConfig
from dptrain.config_checkpoint import CheckpointConfig, KeysConfig
from dptrain.config_compare import CompareConfig, RegisterConfig
from dptrain.config_convert import ConvertConfig
from dptrain.config_data import DataConfig
from dptrain.config_export import ExportConfig
from dptrain.config_finetune import FinetuneConfig
from dptrain.config_gate import GateConfig, QuarantineConfig
from dptrain.config_generate import GenerateConfig
from dptrain.config_privacy import PrivacyConfig
from dptrain.config_report import ReportConfig
from dptrain.config_selfcheck import SelfCheckConfig
from dptrain.config_tracking import TrackingConfig
from dptrain.config_tuning import EvaluationConfig, ReleaseConfig, TuningConfig
from dptrain.config_verify import VerifyConfig
from dptrain.errors import ConfigError
from dptrain.ranges import choice as _choice
from dptrain.ranges import number as _number


@dataclass
class ModelConfig:
    """Which model."""

    name: str = "mlp"
    """A registered model: linear, mlp, tanh_cnn, wrn, hf, timm, efficientnet_lite0 or a user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model's function."""
    features: str = "none"
    """A fixed, data-independent map applied once to every row and cached: none, scatter or a user's own."""
    replace_batchnorm: bool = False
    """Replace every BatchNorm layer, which mixes units, by GroupNorm of at most 32 groups."""
    path: str | None = None
    """Folder of local weights (safetensors) that the model starts from; needed by hf, timm and efficientnet_lite0."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model.name", "''", "is needed with model=own", "give the name that your file registers")


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
    ema: float = 0.0
    """Decay in [0, 1) of the moving average of the weights, which is judged and released in their place; 0: none. Costs
    no privacy."""

    def __post_init__(self) -> None:
        _number("optimizer.ema", self.ema, low=0, high=1, high_open=True)
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
    noise_device: str = "cpu"
    """Where secure noise is made: cpu, or model (the model's own device: meant for GPUs, on which it has not run yet;
    far slower on a CPU). The same law: docs/noise.md, section 6. Fast noise is always made where the model is."""
    threads: int | None = None
    """CPU threads of torch, in [1, 1024]; None leaves torch's choice."""
    memory_limit: int | None = None
    """MiB that a step of the engine bookkeeping may take beside the model, its optimizer and the physical batch's rows;
    the engine then takes the batch in as many runs of whole units as that asks for. 0: about what plain training of the
    batch takes. None: all rows at once. As allocated; what libraries and the system lose comes on top. A unit is never
    split: one that does not fit goes through alone."""
    checkpoint: list[str] = field(default_factory=list)
    """Patterns of names of modules (blocks.*, bert.encoder.layer.*) whose activations the engine bookkeeping does not
    keep but computes again in its backward pass, which it then takes twice: the memory of about one of them, at about
    twice the time. For units that do not fit at all; memory_limit is quicker where several rows go through at once."""
    length_buckets: list[int] | None = None
    """Lengths in [1, 8192] to which physical batches of text are padded, the shortest that holds their longest row;
    None: 16, 32, 48, 64, 96, ... below data.text.max_length; empty: always data.text.max_length."""

    @property
    def noise_on_device(self) -> bool:
        """Whether secure noise is made on the model's device."""
        return self.noise_device == "model"

    def __post_init__(self) -> None:
        _number("execution.physical_batch_size", self.physical_batch_size, low=1)
        _choice("execution.dtype", self.dtype, ["float32", "bfloat16", "float64"])
        _choice("execution.noise_device", self.noise_device, ["cpu", "model"])
        _number("execution.threads", self.threads, low=1, high=1024)
        _number("execution.memory_limit", self.memory_limit, low=0)
        for length in self.length_buckets or []:
            _number("execution.length_buckets", length, low=1, high=8192)
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
    audit: CanaryConfig = field(default_factory=CanaryConfig)
    selfcheck: SelfCheckConfig = field(default_factory=SelfCheckConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
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


ROOTS: dict[str, type] = {
    "train": TrainConfig,
    "finetune": TrainConfig,
    "plan": TrainConfig,
    "audit": AuditConfig,
    "certify": CertifyConfig,
    "report": ReportConfig,
    "budget": BudgetConfig,
    "compare": CompareConfig,
    "register": RegisterConfig,
    "convert": ConvertConfig,
    "export": ExportConfig,
    "generate": GenerateConfig,
    "verify": VerifyConfig,
    "data": QuarantineConfig,
    "keys": KeysConfig,
}
"""Command -> root dataclass."""
