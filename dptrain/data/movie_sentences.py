"""Movie sentences: does a sentence of a review praise? 10,605 with the mean of human ratings, binary."""

from __future__ import annotations

import math

from dptrain.config_data import DataConfig
from dptrain.data.shipped_texts import decoded, shipped_texts
from dptrain.data.source import Source
from dptrain.data.texts import Texts, without_repeats
from dptrain.errors import ConfigError
from dptrain.registry import sources

FILE = "movieReviewSnippets_GroundTruth.txt"
SENTENCES = 10_566
"""Distinct ones with a rating other than 0, of 10,605 in the file."""


@sources.register("movie_sentences")
def movie_sentences(config: DataConfig, seed: int, public_share: float = 0.2, verify: bool = True) -> Source:
    """Distinct sentences, target 1: the mean of twenty people's ratings in [-4, 4] is above 0. Token ids (T,).

    Hutto and Gilbert 2014, "VADER". No personal data. Sentences rated exactly 0 have no sign and are left out; of
    repeats the first stays.

    Raises:
        ConfigError: as ``shipped_texts``; at loading, a line that is not number, rating, sentence.
    """
    return shipped_texts(
        config, seed, "movie_sentences", parse, classes=("negative", "positive"), units=SENTENCES,
        public_share=public_share, verify=verify, what="distinct sentences",
    )  # fmt: skip


def parse(files: dict[str, bytes]) -> Texts:
    """Sentences in file order; the first line names the columns."""
    lines = decoded(files[FILE], "movie_sentences").splitlines()
    text, target = [], []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        rating = _number(fields[1]) if len(fields) == 3 else math.nan
        if math.isnan(rating):
            raise ConfigError("data.path", FILE, f"line {number} is not number, rating, sentence", "correct it")
        if rating != 0.0:
            text.append(fields[2])
            target.append(int(rating > 0))
    return without_repeats(Texts(text, target))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
