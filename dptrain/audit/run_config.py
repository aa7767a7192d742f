"""A run's own config as an audit may believe it: read within bounds, and held against the signed bundle.

``config.yaml`` lies beside the bundle and nothing signs it: whoever touched the folder may have written it. Rows are
held against the run's digest elsewhere; here it is held against the statement and the model's description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dptrain.config import TrainConfig
from dptrain.errors import ConfigError, one_line
from dptrain.models.build import ModelSpec
from dptrain.privacy.plan import Plan
from dptrain.run_folder import RunFolder

LARGEST = 2 << 20
"""Bytes of a config.yaml."""
RESTORE = "restore it from a copy"


def read_run_config(folder: RunFolder) -> TrainConfig:
    """The typed config of a run folder that anyone may have touched.

    Aliases are refused: dptrain writes none, and a few lines of them unfold to more than a machine holds.

    Raises:
        ConfigError: it is missing, no plain file, larger than 2 MiB, no config, or out of range.
    """
    import yaml
    from omegaconf import OmegaConf

    from dptrain.compose import typed

    if not folder.config.is_file():  # a pipe would never end
        raise ConfigError("run", folder.config, "is missing, or is no file", RESTORE)
    try:
        with folder.config.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        text = data.decode("utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ValueError("it holds YAML aliases, and dptrain writes none")
        return typed(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(text)))
    except ConfigError:
        raise
    except Exception as error:
        problem = f"cannot be read ({one_line(str(error))[:300]})"
        raise ConfigError("run", folder.config, problem, RESTORE) from error


def check_model(settings: TrainConfig, spec: ModelSpec, folder: RunFolder) -> None:
    """Refuses a config that names another model than the bundle holds, before that model takes any memory.

    Says nothing of a model that begins in a folder or a bundle: its description follows from there (``check_recipe``).
    """
    model = settings.model
    if settings.finetune.start is None:
        named: dict[str, Any] = {"name": model.name, "features": model.features}
        named |= {"replace_batchnorm": model.replace_batchnorm}
        held: dict[str, Any] = {name: getattr(spec, name) for name in named}
        if model.path is None and model.name != "hf":
            named["options"], held["options"] = dict(model.options), spec.options
        _refuse_others("model", named, held, "the bundle", folder)


def check_recipe(
    plan: Plan, spec: ModelSpec, statement: Mapping[str, Any], bundle: ModelSpec, config: RunFolder
) -> None:
    """Refuses to train references by another plan, or as another model, than those of the audited checkpoint.

    References that were trained otherwise would say little about it, in numbers that look like any others.

    Args:
        plan: compiled from the run's config.
        spec: of the model that the config leads to.
        statement: verified.
        bundle: of the audited model.
        config: where the config lies, for the error.

    Raises:
        ConfigError: they differ.
    """
    mechanism, sampling = statement["mechanism"], statement["sampling"]
    ours: dict[str, Any] = {"private": plan.is_private, "steps": plan.steps}
    said: dict[str, Any] = {"private": mechanism is not None, "steps": sampling["steps_planned"]}
    if plan.mechanism is not None and mechanism is not None:
        ours |= {"noise_multiplier": plan.mechanism.noise_multiplier, "clipping_norm": plan.mechanism.clipping_norm}
        ours |= {"expected_batch_size": plan.expected_batch_size, "unit": plan.unit, "adjacency": plan.adjacency}
        ours |= {"max_rows_per_unit": plan.max_rows_per_unit}
        said |= {name: mechanism[name] for name in ("noise_multiplier", "clipping_norm")}
        said |= {"expected_batch_size": sampling["expected_batch_size"], "unit": statement["unit"]["kind"]}
        said |= {"adjacency": statement["adjacency"]["relation"], "max_rows_per_unit": statement["unit"]["max_rows"]}
    _refuse_others("plan", ours, said, "the statement", config)
    own, other = (_described(one) for one in (spec, bundle))
    _refuse_others("model", own, other, "the bundle", config)


def _described(spec: ModelSpec) -> dict[str, Any]:
    # How weights were averaged and what classes are called make no other model.
    plain = replace(spec, ema=0.0, class_names=()).to_json()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _refuse_others(what: str, ours: dict[str, Any], said: dict[str, Any], by: str, folder: RunFolder) -> None:
    for name, value in ours.items():
        other = said.get(name)
        if isinstance(value, float) and isinstance(other, int | float):
            same = math.isclose(value, other, rel_tol=1e-9)
        else:
            same = value == other
        if not same:
            raise ConfigError(
                "run",
                folder.config,
                f"is not this checkpoint's: its {what} has {name} {str(value)[:60]}, {by} {str(other)[:60]}",
                RESTORE,
            )
