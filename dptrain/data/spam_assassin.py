"""SpamAssassin: is an e-mail advertising? 6,046 real mails of 2002 with their senders, binary; users can be units."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import email.utils
import html
import json
import re

from dptrain.config_data import DataConfig
from dptrain.data.settings import flag
from dptrain.data.shipped import shipped
from dptrain.data.shipped_texts import decoded, shipped_texts
from dptrain.data.source import Source
from dptrain.data.texts import Texts, without_repeats
from dptrain.errors import ConfigError, suggest
from dptrain.registry import sources

FILE = "mails.jsonl"
MAILS, SENDERS = 5_917, 2_562
HEADERS = ("subject", "content-type", "content-transfer-encoding", "x-mailer", "organization")
"""Header lines that may stand before the text. The others name lists, machines and filters, by which the folders were
put together: they give the label away."""
HIDDEN = re.compile(r"<(style|script)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"<[^<>]*>")


@sources.register("spam_assassin")
def spam_assassin(
    config: DataConfig,
    seed: int,
    headers: list[str] | None = None,
    markup: bool = False,
    public_share: float = 0.2,
    verify: bool = True,
) -> Source:
    """Distinct mails, target 1: spam. Rows of token ids (T,) of chosen header lines and the body.

    ``data.unit_column=sender`` makes the address of the From line the user (for privacy.unit=user); left out, a unit is
    a distinct mail. Mails without an address are users of their own.

    Args:
        config: data.path, public_size, task, unit_column, text.
        seed: of the split.
        headers: lines that stand before the body, of ``HEADERS``; None for subject alone.
        markup: whether HTML tags stay.
        public_share: share of units that are public, in (0, 1).
        verify: ``False`` accepts files other than the published ones, in the same format.

    Raises:
        ConfigError: as ``shipped_texts``, or a header line that is none of those; at loading, a broken line.

    Guarantee: repeats are taken out before the split; with senders, within one sender only, so that no sender's mails
    decide which of another's stay.
    """
    wanted = ["subject"] if headers is None else [str(name).lower() for name in headers]
    for name in wanted:
        if name not in HEADERS:
            problem = "is not one of " + ", ".join(HEADERS)
            raise ConfigError("data.options.headers", name, problem, suggest(name, HEADERS))
    flag("spam_assassin", "markup", markup)
    by_sender = config.unit_column is not None
    if by_sender and config.unit_column != "sender":
        raise ConfigError("data.unit_column", config.unit_column, "is not known here", "set data.unit_column=sender")

    def parse(files: dict[str, bytes]) -> Texts:
        texts = read_mails(decoded(files[FILE], "spam_assassin"), wanted, markup)
        return without_repeats(texts if by_sender else Texts(texts.text, texts.target))

    counts = {int(rows): units for rows, units in shipped("spam_assassin").get("unit_rows", {}).items()}
    return shipped_texts(
        config, seed, "spam_assassin", parse, classes=("ham", "spam"), units=SENDERS if by_sender else MAILS,
        public_share=public_share, verify=verify, what="senders" if by_sender else "distinct mails", owners="sender",
        unit_rows=counts if by_sender else None,
    )  # fmt: skip


def read_mails(content: str, headers: list[str], markup: bool) -> Texts:
    """All mails in file order, their label from the folder they lay in, their sender from the From line."""
    text, target, owner = [], [], []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
            name, mail = str(record["file"]), email.message_from_bytes(str(record["mail"]).encode("latin-1"))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError("data.path", FILE, f"line {number} holds no mail", "fetch the file again") from error
        whole = "\n".join([*(_header(mail, wanted) for wanted in headers), "", body(mail, markup)])
        text.append(whole.encode("utf-8", "replace").decode("utf-8"))  # stray bytes of a header become question marks
        target.append(int(name.startswith("spam")))
        owner.append(sender(mail) or name)
    return Texts(text, target, owner)


def sender(mail: email.message.Message) -> str:
    """The address of the From line in lower case; empty where there is none."""
    return email.utils.parseaddr(str(mail.get("From", "")))[1].strip().lower()


def body(mail: email.message.Message, markup: bool) -> str:
    """The text parts of a mail, unpacked; without HTML tags unless ``markup``."""
    parts = [_unpacked(part) for part in mail.walk() if part.get_content_maintype() == "text"]
    whole = "\n".join(parts)
    if not markup:
        whole = html.unescape(TAG.sub(" ", HIDDEN.sub(" ", whole)))
    return whole.replace("\r\n", "\n")


def _unpacked(part: email.message.Message) -> str:
    raw = part.get_payload(decode=True)
    content = raw if isinstance(raw, bytes) else b""
    for charset in (part.get_content_charset(), "utf-8"):
        try:
            return content.decode(charset or "utf-8")
        except (LookupError, ValueError):
            continue
    return content.decode("latin-1")


def _header(mail: email.message.Message, name: str) -> str:
    value = str(mail.get(name, ""))
    try:
        value = str(email.header.make_header(email.header.decode_header(value)))
    except (LookupError, ValueError, email.errors.HeaderParseError):
        value = value.strip()  # as it came: a header that does not say truly how it is coded
    return f"{name.capitalize()}: {' '.join(value.split())}"
