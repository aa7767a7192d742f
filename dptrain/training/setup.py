"""Everything that can be refused before a private row is read: names, ranges, plan, model, loss, folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn

from dptrain.config import TrainConfig
from dptrain.data.gate import check_gate
from dptrain.data.source import Source, SourceInfo
from dptrain.distributed import current_rank
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.checkpoint import checkpointed_modules
from dptrain.gradients.protocol import ClippingRule, RowLoss, trainable
from dptrain.keystream import Keystream
from dptrain.models.build import ModelSpec
from dptrain.models.features import check_map
from dptrain.models.probe import check_deterministic
from dptrain.models.trained_part import TrainedPart
from dptrain.models.validate import check_model
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.selection import Trials, trials_with_mean
from dptrain.privacy.started import Started
from dptrain.registry import engines, load_user_files, sources
from dptrain.run_folder import RunFolder, new_run
from dptrain.training.assemble import build_engine, checkpoint_patterns, pick_device
from dptrain.training.budget import check_purpose
from dptrain.training.canaries import check_canaries
from dptrain.training.evaluate import metric_names
from dptrain.training.losses import check_row_loss, row_loss
from dptrain.training.optimizers import build_optimizer, build_schedule
from dptrain.training.private_metrics import check_private_evaluation, looks_event, training_units
from dptrain.training.start import begin_model


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that nothing speaks against yet. No private row has been read to make it."""

    config: TrainConfig
    source: Source
    plan: Plan
    spec: ModelSpec
    module: nn.Module
    row_loss: RowLoss
    metrics: list[str]
    folder: RunFolder
    keystream: Keystream
    purpose: str
    """The run's class: debug, trial, final, evaluation or audit."""
    start: Started | None = None
    """What the model was before; None where it began at random."""
    part: TrainedPart | None = None
    """What of the model is trained; None where it is all of a new one."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters that training moves."""
        return sum(p.numel() for p in trainable(self.module).values())


def prepare(config: TrainConfig, check_folder: bool = True) -> Setup:
    """Resolves every name and range of a config; reads no private row and writes nothing.

    Args:
        config: the typed config.
        check_folder: whether the run folder must be free (a dry run does not need one).

    Raises:
        ConfigError: naming the setting, what is wrong and what to do.
    """
    if current_rank().world_size > 1:
        raise ConfigError(
            "WORLD_SIZE", current_rank().world_size, "one process trains a run so far", "launch without torchrun"
        )
    if config.execution.threads is not None:
        torch.set_num_threads(config.execution.threads)
    load_user_files(config.imports)
    folder = new_run(config.run.id, config.run.dir)
    if check_folder:
        folder.check_free()
    source = sources.build(config.data.name, config.data, config.seed, options=config.data.options)
    check_promises(config, source.info)
    check_gate(config.gate, config.data, source.info)
    purpose = check_purpose(config, source.info)
    if check_folder and config.tuning.strategy in ("random", "grid"):
        remedy = "add --multirun and lists of values, or leave it out"
        raise ConfigError("tuning.strategy", config.tuning.strategy, "searches, and this is a single run", remedy)
    check_private_evaluation(config, source.info)
    units, looks = training_units(config, source.info), looks_event(config, source.info)
    plan = compile_plan(config.privacy, units, looks, trials_of(config))
    device = pick_device(config.execution.device)
    spec = model_spec(config, source.info)
    begun = begin_model(config, source.info, spec)
    spec, module = replace(begun.spec, ema=config.optimizer.ema), begun.module
    check_model(module, spec.name, spec.input_shape, spec.num_outputs)
    if plan.is_private:
        check_deterministic(module, spec.name, spec.input_shape)
    if config.execution.dtype == "float64":
        module = module.double()
    loss = row_loss(config.task.loss, source.info.task, config.task.class_weights, source.info.num_classes)
    check_row_loss(loss, source.info.num_outputs, source.info.task)
    check_canaries(config, source.info, plan, module)
    engines.resolve(config.clipping.engine)
    checkpointed_modules(module, checkpoint_patterns(config))
    if plan.mechanism is not None and config.clipping.engine.startswith("opacus"):
        # A layer without a rule is refused now. On a copy: Opacus' hooks stay where they were put.
        build_engine(config, deepcopy(module), loss, ClippingRule(plan.mechanism.clipping_norm, None))
    names = metric_names(config.task.metrics, source.info.task)
    build_schedule(config.optimizer, build_optimizer(config.optimizer, list(trainable(module).values())), plan.steps)
    return Setup(
        config=config,
        source=source,
        plan=plan,
        spec=spec,
        module=module.to(device),
        row_loss=loss,
        metrics=names,
        folder=folder,
        keystream=Keystream(),
        purpose=purpose,
        start=begun.start,
        part=begun.part,
    )


def trials_of(config: TrainConfig) -> Trials | None:
    """The law of the number of trials, where the run is to be the best of a random search."""
    tuning = config.tuning
    if tuning.strategy != "random" or tuning.mean_trials is None:
        return None
    return trials_with_mean(tuning.trials_distribution, tuning.mean_trials, tuning.eta)


def check_promises(config: TrainConfig, info: SourceInfo) -> None:
    """Refuses combinations of data and privacy settings that would promise something else than they say."""
    if config.tracking.register_as is not None and config.privacy.mechanism == "none":
        raise ConfigError(
            "tracking.register_as",
            config.tracking.register_as,
            "takes models whose statement verifies, and privacy=off promises nothing",
            "leave it out, or choose a private plan",
        )
    if config.tuning.public and not (info.is_public or config.data.all_public):
        raise ConfigError(
            "tuning.public", True, f"data '{info.name}' is private", "charge the sweep: tuning.strategy=random, say"
        )
    if config.privacy.adjacency == "add_remove" and config.data.public_size is None:
        raise ConfigError(
            "privacy.adjacency",
            "add_remove",
            "keeps the number of units private, so the rate needs a declared size",
            "set data.public_size to a public figure",
        )
    positional = config.data.public_fraction is not None and info.unit != "user" and len(info.input_shape) == 1
    if config.privacy.adjacency == "add_remove" and positional:
        raise ConfigError(
            "data.public_fraction",
            config.data.public_fraction,
            "splits rows by position, so that one row less would move others across the split under add_remove",
            "set data.public_path or data.unit_column",
        )
    if config.privacy.unit == "user" and info.unit != "user":
        raise ConfigError(
            "privacy.unit", "user", f"data '{info.name}' does not say whose rows are whose", "set data.unit_column"
        )
    if config.clipping.engine == "opacus_ghost" and config.privacy.max_rows_per_unit > 1:
        raise ConfigError(
            "clipping.engine", "opacus_ghost", "clips rows, and here units may have several", "set clipping.engine=auto"
        )
    if config.privacy.max_rows_per_unit > config.execution.physical_batch_size:
        raise ConfigError(
            "execution.physical_batch_size",
            config.execution.physical_batch_size,
            f"cannot hold one unit of up to {config.privacy.max_rows_per_unit} rows",
            "raise it, or lower privacy.max_rows_per_unit",
        )


def model_spec(config: TrainConfig, info: SourceInfo) -> ModelSpec:
    """What will be built, with the shape that the feature map gives."""
    shape = tuple(info.input_shape)
    mapped = check_map(config.model.features, shape) if config.model.features != "none" else shape
    return ModelSpec(
        name=config.model.name,
        options=dict(config.model.options),
        features=config.model.features,
        replace_batchnorm=config.model.replace_batchnorm,
        raw_shape=shape,
        input_shape=tuple(mapped),
        num_outputs=info.num_outputs,
        task=info.task,
        class_names=info.class_names,
    )
