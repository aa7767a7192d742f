"""The shipped sets of texts: the traps of their formats on made-up files, sizes of the real ones where fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.config_data import DataConfig
from dptrain.config_text import TextConfig
from dptrain.data.source import Source, Splits
from dptrain.data.spam_assassin import read_mails
from dptrain.errors import ConfigError
from dptrain.registry import sources

REAL = Path(__file__).resolve().parents[2] / "data"
BYTES = TextConfig(tokenizer="bytes", max_length=64)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(name: str, path: Path, options: dict[str, Any] | None = None, **settings: Any) -> Source:
    config = DataConfig(name=name, path=str(path), text=BYTES, **settings)
    return sources.build(name, config, 0, options={"verify": False, "public_share": 0.4, **(options or {})})


def texts(splits: Splits) -> list[tuple[str, int]]:
    """(text, target) of all rows, in the order of their texts."""
    found = []
    for rows in (splits.train, splits.public):
        for ids, target in zip(rows.inputs.tolist(), rows.targets.tolist(), strict=True):
            found.append((bytes(i - 3 for i in ids if i > 2).decode(), target))
    return sorted(found)


SMS = ',spam,text\n0,0,Ok lar\n1,1,"Win, ""now""\non two lines"\n2,0,ok  LAR\n3,1,Call\n4,0,Later\n5,0,Home\n'


def test_messages_are_quoted_run_over_lines_and_repeat(tmp_path: Path) -> None:
    (tmp_path / "sms-spam.csv").write_text(SMS, encoding="utf-8")
    splits = source("sms_spam", tmp_path).load()
    assert texts(splits) == [("Call", 1), ("Home", 0), ("Later", 0), ("Ok lar", 0), ('Win, "now"\non two lines', 1)]
    assert len(splits.public) == 2
    told = source("sms_spam", tmp_path, task="language")
    assert told.info.num_outputs == 1 and min(told.load().train.targets.tolist()) >= 5
    (tmp_path / "sms-spam.csv").write_text(SMS + "6,2,SECRET\n")
    with pytest.raises(ConfigError, match="record 7 is not number, 0 or 1, message") as refusal:
        source("sms_spam", tmp_path).load()
    assert "SECRET" not in str(refusal.value)


def test_sentences_have_a_header_and_the_sign_of_their_rating(tmp_path: Path) -> None:
    lines = [
        "id\tsentiment\ttext",
        "1\t2.5\tGood.",
        '2\t-0.1\tBad, "quoted.',
        "3\t0.0\tSo so.",
        "4\t1\tGood.",
        "5\t-3\tNo",
    ]
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_bytes("\r\n".join(lines).encode())
    assert texts(source("movie_sentences", tmp_path).load()) == [('Bad, "quoted.', 0), ("Good.", 1), ("No", 0)]
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text("\n".join([*lines, "6\tx\ty"]))
    with pytest.raises(ConfigError, match="line 7 is not number, rating, sentence"):
        source("movie_sentences", tmp_path).load()


def test_dialogue_is_pairs_without_labels(tmp_path: Path) -> None:
    (tmp_path / "movie_dialog.txt").write_text("hi\thello\nhi \thello\nwho?\tme.\nno\tyes\n")
    made = source("film_dialogue", tmp_path)
    assert made.info.task == "language" and made.info.is_public
    assert [text for text, _ in texts(made.load())] == ["hi\nhello", "no\nyes", "who?\nme."]
    with pytest.raises(ConfigError, match=r"data\.task=binary"):
        source("film_dialogue", tmp_path, task="binary")


def mail(file: str, sender: str, body: str, subject: str = "Hi") -> dict[str, str]:
    head = f"From x@y Thu Aug 22\nReceived: by list-of-good-mail\nFrom: {sender}\nSubject: {subject}\n"
    return {"file": file, "mail": f"{head}Content-Type: text/html; charset=us-ascii\n\n{body}\n"}


MAILS = [
    mail("easy-ham-1/1.txt", "Ann <Ann@A.org>", "<b>one</b> &amp; all"),
    mail("easy-ham-1/2.txt", "ann@a.org", "two"),
    mail("spam-1/1.txt", "Bob <b@b.org>", "two"),
    mail("spam-2/2.txt", "", "<style>.x{}</style>three", "=?iso-8859-1?q?caf=E9?="),
]


def save_mails(folder: Path, mails: list[dict[str, str]]) -> Path:
    (folder / "mails.jsonl").write_text("".join(json.dumps(each) + "\n" for each in mails))
    return folder


def test_mails_show_subject_and_body_alone_and_senders_are_units(tmp_path: Path) -> None:
    save_mails(tmp_path, MAILS)
    held = read_mails((tmp_path / "mails.jsonl").read_text(), ["subject"], False)
    assert [" ".join(text.split()) for text in held.text] == [
        "Subject: Hi one & all", "Subject: Hi two", "Subject: Hi two", "Subject: café three"]  # fmt: skip
    assert held.target == [0, 0, 1, 1] and held.owner == ["ann@a.org", "ann@a.org", "b@b.org", "spam-2/2.txt"]
    by_mail, by_sender = source("spam_assassin", tmp_path), source("spam_assassin", tmp_path, unit_column="sender")
    assert by_mail.info.unit == "record" and by_mail.info.unit_rows is None
    assert sum(map(len, (by_mail.load().train, by_mail.load().public))) == 3  # "two" came twice
    splits = by_sender.load()
    assert by_sender.info.unit == "user" and splits.train.num_units + splits.public.num_units == 3
    assert len(splits.train) + len(splits.public) == 4  # of two senders, so both stay


def test_a_mails_header_lines_are_chosen_from_those_that_tell_no_label(tmp_path: Path) -> None:
    save_mails(tmp_path, MAILS)
    made = texts(source("spam_assassin", tmp_path, {"headers": ["content-type"], "markup": True}).load())
    assert made[0][0].startswith("Content-type: text/html") and any("<b>one</b>" in text for text, _ in made)
    with pytest.raises(ConfigError, match=r"data\.options\.headers=received"):
        source("spam_assassin", tmp_path, {"headers": ["Received"]})
    with pytest.raises(ConfigError, match=r"data\.unit_column=who"):
        source("spam_assassin", tmp_path, unit_column="who")
    save_mails(tmp_path, [*MAILS, {"file": "spam-1/9.txt"}])
    with pytest.raises(ConfigError, match="line 5 holds no mail"):
        source("spam_assassin", tmp_path).load()


@pytest.mark.parametrize("share", [0, 1, -0.5, True, "half"])
def test_a_share_that_is_none_is_refused(share: object, tmp_path: Path) -> None:
    (tmp_path / "sms-spam.csv").write_text(SMS)
    with pytest.raises(ConfigError, match=r"data\.options\.public_share"):
        source("sms_spam", tmp_path, {"public_share": share})


@pytest.mark.parametrize(
    ("name", "train", "public"),
    [("sms_spam", 3609, 902), ("movie_sentences", 8453, 2113), ("film_dialogue", 60634, 3191)],
)
def test_the_published_sets_have_the_sizes_they_declare(name: str, train: int, public: int) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"data/{name} is not here; bash scripts/fetch_data.sh {name}")
    made = sources.build(name, DataConfig(name=name, path=str(REAL / name), text=BYTES), 3)
    splits = made.load()
    assert made.info.public_size == train == len(splits.train) and len(splits.public) == public
