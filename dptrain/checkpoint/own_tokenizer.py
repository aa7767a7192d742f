"""Which tokenizer a run's texts went through: named in the run's own config, for a bundle holds none."""

from __future__ import annotations

from pathlib import Path

from dptrain.errors import ConfigError

CONFIG = "config.yaml"
REMEDY = "name it: tokenizer=FOLDER, a tokenizer.json, or bytes"


def tokenizer_of(run: str, given: str | None) -> str:
    """The tokenizer that was given, or the one in the run's ``config.yaml``.

    Args:
        run: a run folder, or its checkpoint/.
        given: what the user names; None to look it up.

    Raises:
        ConfigError: none is given, and there is no run folder that names one.
    """
    if given is not None:
        return given
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    folder = Path(run).expanduser()
    file = next((place / CONFIG for place in (folder, folder.parent) if (place / CONFIG).is_file()), None)
    if file is None:
        raise ConfigError("tokenizer", "null", f"is needed: {run} holds no {CONFIG} that names one", REMEDY)
    try:
        found = OmegaConf.select(OmegaConf.load(file), "data.text.tokenizer")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError("tokenizer", "null", f"{file} cannot be read ({type(error).__name__})", REMEDY) from error
    if not isinstance(found, str):
        raise ConfigError("tokenizer", "null", f"is needed: {file} names none", REMEDY)
    return found
