"""SMS spam: is a text message advertising? 4,511 distinct messages of private people, binary."""

from __future__ import annotations

import csv
import io

from dptrain.config_data import DataConfig
from dptrain.data.shipped_texts import decoded, shipped_texts
from dptrain.data.source import Source
from dptrain.data.texts import Texts, without_repeats
from dptrain.errors import ConfigError
from dptrain.registry import sources

FILE = "sms-spam.csv"
MESSAGES = 4_511
"""Distinct ones, of 4,837 in the file."""


@sources.register("sms_spam")
def sms_spam(config: DataConfig, seed: int, public_share: float = 0.2, verify: bool = True) -> Source:
    """4,511 messages after repeats are taken out, target 1: spam. Rows of token ids (T,), by ``data.text``.

    Messages that agree up to case and white space are one; the first stays. That comes before the split, so no
    message is on both sides. ``data.task=language``: tell the next token instead.

    Args:
        config: data.path, public_size, task, text.
        seed: of the split.
        public_share: share of messages that are public, in (0, 1): 902 of them, 3,609 train.
        verify: ``False`` accepts files other than the published ones, in the same format.

    Raises:
        ConfigError: as ``shipped_texts``; at loading, a record that is not number, 0 or 1, message.

    Guarantee: the unit is a distinct message, with all its copies.
    """
    return shipped_texts(
        config, seed, "sms_spam", parse, classes=("ham", "spam"), units=MESSAGES, public_share=public_share,
        verify=verify, what="distinct messages",
    )  # fmt: skip


def parse(files: dict[str, bytes]) -> Texts:
    """Messages in file order. Records are quoted and may run over several lines."""
    rows = list(csv.reader(io.StringIO(decoded(files[FILE], "sms_spam"), newline="")))
    text, target = [], []
    for number, record in enumerate(rows[1:], start=1):
        if len(record) != 3 or record[1] not in ("0", "1"):
            raise ConfigError("data.path", FILE, f"record {number} is not number, 0 or 1, message", "correct it")
        text.append(record[2])
        target.append(int(record[1]))
    return without_repeats(Texts(text, target))
