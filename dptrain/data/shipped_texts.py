"""What the shipped sets of texts have in common: which settings they take, and the split of rows into two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dptrain.config_data import DataConfig
from dptrain.data.settings import flag, only_uses
from dptrain.data.shipped import locate, read_shipped, shipped
from dptrain.data.source import Source
from dptrain.data.texts import LANGUAGE, Texts, public_rows, text_source
from dptrain.errors import ConfigError

Parse = Callable[[dict[str, bytes]], Texts]
"""File name -> content, to all rows of the set."""


def shipped_texts(
    config: DataConfig,
    seed: int,
    name: str,
    parse: Parse,
    *,
    classes: Sequence[str],
    units: int,
    public_share: float,
    verify: bool,
    what: str = "distinct texts",
    owners: str | None = None,
    unit_rows: dict[int, int] | None = None,
) -> Source:
    """A set whose published files lie in a folder, split into private and public rows by a seeded hash.

    Args:
        config: data.path, public_size, task, text; and unit_column where the set knows owners.
        seed: of the split.
        name: of the set.
        parse: reads its files.
        classes: class names; of none where it has no labels.
        units: number of units in the published files.
        public_share: share of units that are public, in (0, 1).
        verify: whether files must be the published ones.
        what: what is split.
        owners: what data.unit_column may name; None where nobody says whose rows are whose.
        unit_rows: rows a unit -> units, in the published files.

    Raises:
        ConfigError: a setting does not fit, or a file is missing; at loading, a file is not the published one.
    """
    only_uses(config, ["path", "public_size", "task", "text", *(["unit_column"] if owners else [])])
    flag(name, "verify", verify)
    task = config.task or ("binary" if classes else LANGUAGE)
    if task not in ([LANGUAGE, "binary"] if classes else [LANGUAGE]):
        remedy = "leave data.task out, or set data.task=language"
        raise ConfigError("data.task", task, f"data '{name}' is of another task", remedy)
    if isinstance(public_share, bool) or not isinstance(public_share, int | float) or not 0 < public_share < 1:
        raise ConfigError("data.options.public_share", public_share, "is no share", "choose a number in (0, 1)")
    if config.text.column is not None:
        raise ConfigError("data.text.column", config.text.column, f"data '{name}' knows its own", "leave it out")
    files = locate(config, name)
    declared = config.public_size is not None
    exact = "each by a hash of its own" if declared else "an exact share by a seeded hash"
    return text_source(
        config,
        task=task,
        classes=[] if task == LANGUAGE else classes,
        public_size=config.public_size or units - round(units * public_share),
        read=lambda: parse({file: read_shipped(path, name, verify) for file, path in files.items()}),
        mask=lambda texts: public_rows(texts, public_share, seed, declared),
        unit="record" if config.unit_column is None else "user",
        licence=shipped(name)["licence"],
        public_split=f"{public_share:g} of the {what}, set aside {exact}",
        is_public=True,
        unit_rows=unit_rows,
    )


def decoded(content: bytes, name: str) -> str:
    """UTF-8 text of a set's file.

    Raises:
        ConfigError: it is none.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("data.path", name, "is not UTF-8 text", f"run: bash scripts/fetch_data.sh {name}") from error
