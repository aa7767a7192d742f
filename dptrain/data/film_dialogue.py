"""Film dialogue: 64,350 pairs of a line and its reply; public text to teach a language model English. No labels."""

from __future__ import annotations

from dptrain.config_data import DataConfig
from dptrain.data.shipped_texts import decoded, shipped_texts
from dptrain.data.source import Source
from dptrain.data.texts import Texts, without_repeats
from dptrain.errors import ConfigError
from dptrain.registry import sources

FILE = "movie_dialog.txt"
PAIRS = 63_825
"""Distinct ones, of 64,350 in the file."""


@sources.register("film_dialogue")
def film_dialogue(config: DataConfig, seed: int, public_share: float = 0.05, verify: bool = True) -> Source:
    """Distinct pairs, line and reply with a line break between; task language. Token ids (T,).

    Danescu-Niculescu-Mizil and Lee 2011 (Cornell Movie-Dialogs Corpus). All of it is public.

    Raises:
        ConfigError: as ``shipped_texts``; at loading, a line without a tab.
    """
    return shipped_texts(
        config, seed, "film_dialogue", parse, classes=(), units=PAIRS, public_share=public_share, verify=verify,
        what="distinct pairs",
    )  # fmt: skip


def parse(files: dict[str, bytes]) -> Texts:
    """Pairs in file order."""
    text = []
    for number, line in enumerate(decoded(files[FILE], "film_dialogue").splitlines(), start=1):
        said, tab, reply = line.partition("\t")
        if not tab:
            raise ConfigError("data.path", FILE, f"line {number} is not two fields", "fetch the file again")
        text.append(f"{said.strip()}\n{reply.strip()}")
    return without_repeats(Texts(text, []))
