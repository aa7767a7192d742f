"""Fertility: does a mother of two have a third child? 254,654 women of the 1980 US census, one row each, binary."""

from __future__ import annotations

import numpy as np
import torch

from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.data.columns import codes, encode, width
from dptrain.data.r_data import NotR, read_frame
from dptrain.data.settings import flag, only_uses
from dptrain.data.shipped import locate, read_shipped, shipped
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.data.split import split_ids, split_share
from dptrain.errors import ConfigError
from dptrain.registry import sources

FILE = "Fertility.rda"
WOMEN = 254_654
CLASSES = ("no", "yes")
WEEKS = 52
COLUMNS: dict[str, ColumnConfig] = {
    "gender1": ColumnConfig(categories=["male", "female"]),
    "gender2": ColumnConfig(categories=["male", "female"]),
    "same": ColumnConfig(categories=["no", "boys", "girls"]),
    "age": ColumnConfig(low=21, high=35),
    "age-squared": ColumnConfig(low=0, high=49),
    "afam": ColumnConfig(categories=["no", "yes"]),
    "hispanic": ColumnConfig(categories=["no", "yes"]),
    "other": ColumnConfig(categories=["no", "yes"]),
    "work": ColumnConfig(low=0, high=WEEKS),
    "worked": ColumnConfig(categories=["never", "part", "all"]),
}
"""Ranges and levels as the data set's documentation gives them. ``same``: the first two children are of one sex.
``age-squared`` counts from 28, the middle; ``worked``: in no week of 1979, in some, in all of them."""
READ = ("morekids", "gender1", "gender2", "age", "afam", "hispanic", "other", "work")


@sources.register("fertility")
def fertility(config: DataConfig, seed: int, public_share: float = 0.2, verify: bool = True) -> Source:
    """Angrist and Evans 1998, "Children and their parents' labor supply". Inputs (19,) in [-1, 1], target 1: more than
    two children.

    Args:
        config: data.path, public_size.
        seed: of the split, which goes by the number of a row in the file.
        public_share: share of rows that are public, in (0, 1): 50,931 of them, 203,723 train.
        verify: ``False`` accepts files other than the published one, in the same format.

    Raises:
        ConfigError: the file is missing; at loading, it is not the published one or no such data frame.

    Guarantee: ranges and levels are constants of this file, so a row's features depend on that row alone.
    """
    only_uses(config, ["path", "public_size"])
    flag("fertility", "verify", verify)
    if isinstance(public_share, bool) or not isinstance(public_share, int | float) or not 0 < public_share < 1:
        raise ConfigError("data.options.public_share", public_share, "is no share", "choose a number in (0, 1)")
    files = locate(config, "fertility")
    info = SourceInfo(
        name="fertility",
        task="binary",
        input_shape=(width(COLUMNS),),
        num_classes=2,
        public_size=config.public_size or WOMEN - round(WOMEN * public_share),
        class_names=CLASSES,
        licence=shipped("fertility")["licence"],
        public_split=f"{public_share:g} of the women, set aside by a seeded hash of the row's number",
        is_public=True,
        columns=COLUMNS,
    )

    def load() -> Splits:
        rows = read_women(read_shipped(files[FILE], "fertility", verify))
        numbers = [str(number) for number in range(1, len(rows) + 1)]
        split = split_ids if config.public_size is not None else split_share
        public = split(numbers, public_share, seed)
        train, held = (rows.take(torch.from_numpy(np.flatnonzero(side))) for side in (~public, public))
        return Splits(train=train, public=held)

    return Source(info, load)


def read_women(content: bytes) -> Rows:
    """All rows, in file order. Raises ConfigError where the content is no such data frame."""
    again = "run: bash scripts/fetch_data.sh fertility"
    try:
        frame = read_frame(content, "Fertility")
    except NotR as error:
        raise ConfigError("data.path", FILE, str(error), again) from error
    for name in READ:
        if name not in frame or (name in ("age", "work")) != (frame[name].dtype == np.float64):
            raise ConfigError("data.path", FILE, f"has no column '{name}' of the kind documented", again)
    cells = dict(frame)
    one_sex = frame["gender1"] == frame["gender2"]
    cells["same"] = np.where(one_sex, np.where(frame["gender1"] == "male", "boys", "girls"), "no").astype(object)
    cells["age-squared"] = np.square(frame["age"] - 28.0)
    work = frame["work"]
    cells["worked"] = np.where(work <= 0, "never", np.where(work >= WEEKS, "all", "part")).astype(object)
    target = codes(frame["morekids"], list(CLASSES))
    if len(target) < 2 or (target < 0).any():
        raise ConfigError("data.label", "morekids", "is neither yes nor no in some row", again)
    return Rows(torch.from_numpy(encode(cells, COLUMNS)), torch.from_numpy(target))
