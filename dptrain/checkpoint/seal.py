"""Sealed files: AES-256-GCM over chunks of 256 KiB, under a data key of the file's own in an envelope.

    0     magic and a fixed header (512 bytes): cipher, chunk size, what the file is (``context``)
    512   two envelope slots (512 bytes each): id of a master key, the data key encrypted under it
    1536  chunks: 256 KiB of plain text each (the last may be shorter, or empty), followed by its tag of 16 bytes

A chunk's nonce is its number (11 bytes) and whether it is the last (1 byte): the STREAM construction. Its associated
data is the fixed header, and so is the envelope's. To rotate a key, the free slot is written and synced, then the old
one is blanked: the data stays as it is, and at every moment one of the two keys opens the file.

Guarantee: a file that opens is, byte for byte and to its very end, what somebody with the master key sealed as this
context. Chunks that are changed, swapped, cut off, appended or taken from another file do not open, nor does a header
that is changed. A data key seals one file, so no nonce is used twice under one key. Names and sizes are not hidden.
Sources: Hoang, Reyhanitabar, Rogaway, Vizar 2015 (STREAM); NIST SP 800-38D (GCM).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dptrain.checkpoint.sealing_key import MasterKey
from dptrain.errors import ConfigError

MAGIC = b"dptrain.seal/1\n\0"
BLOCK = 512
"""Bytes of the fixed header, and of a slot."""
SLOTS = (BLOCK, 2 * BLOCK)
START = 3 * BLOCK
CHUNK = 256 << 10
"""Stays in a core's own cache while it is deciphered; a file names its own, so files of larger ones open as well."""
TAG = 16
CIPHER = "AES-256-GCM"


class SealBroken(ConfigError):
    """A sealed file does not open: changed, cut, of another kind, or under a key that is not at hand."""

    def __init__(self, path: Path, problem: str, remedy: str = "restore it from a copy") -> None:
        super().__init__("sealed file", path, problem, remedy)
        self._made = (path, problem, remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Survives the way back from a worker process."""
        return type(self), self._made


def write_sealed(path: Path, parts: Iterable[Any], key: MasterKey, context: str, chunk: int = CHUNK) -> None:
    """Seals bytes into a new file (0600), synced when this returns. Not atomic: callers rename.

    Args:
        path: must not exist.
        parts: bytes-like objects, none of which may change before the next is asked for twice.
        key: master key of the envelope.
        context: what the file is; reading it as anything else fails. At most 300 characters.
        chunk: bytes of plain text sealed at once.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb", buffering=0) as file:
        data_key = AESGCM.generate_key(256)
        fixed = _fixed_header(context, chunk)
        _write_all(file, fixed + _slot(key, data_key, fixed) + bytes(BLOCK))
        cipher, buffer = AESGCM(data_key), bytearray(chunk + TAG)
        for number, (piece, last) in enumerate(_pieces(parts, chunk)):
            size = len(piece) + TAG
            out = memoryview(buffer)[:size]
            cipher.encrypt_into(_nonce(number, last), piece, fixed, out)
            _write_all(file, out)
        os.fsync(file.fileno())


def read_sealed(path: Path, keys: Mapping[str, MasterKey], context: str) -> bytearray:
    """The whole plain text, checked to its end before any of it is returned.

    Raises:
        SealBroken: any byte is not what was sealed, or no key at hand opens it.
    """
    with _opened(path) as file:
        cipher, fixed, chunk = _cipher(path, file, keys, context)
        size = os.fstat(file.fileno()).st_size - START
        count = max(1, -(-size // (chunk + TAG)))
        if size < count * TAG:
            raise SealBroken(path, "is cut")
        plain = bytearray(size - count * TAG)
        view, place = memoryview(plain), 0
        buffer = memoryview(bytearray(chunk + TAG))
        for number in range(count):
            sealed = buffer[: file.readinto(buffer)]
            length = len(sealed) - TAG
            if length < 0 or place + length > len(plain):
                raise SealBroken(path, "is cut")
            try:
                cipher.decrypt_into(_nonce(number, number == count - 1), sealed, fixed, view[place : place + length])
            except (InvalidTag, ValueError) as error:
                raise SealBroken(path, f"was changed, cut or extended (chunk {number})") from error
            place += length
        if place != len(plain) or file.read(1):
            raise SealBroken(path, "was changed while it was read")
        return plain


def sealed_under(path: Path) -> list[str]:
    """Ids of the master keys in a file's envelope slots; not authenticated."""
    with _opened(path) as file:
        head = file.read(START)
    if len(head) < START or not head.startswith(MAGIC):
        raise SealBroken(path, "is no sealed file")
    return [slot["key_id"] for start in SLOTS if (slot := _parsed(head[start : start + BLOCK])) is not None]


def rotate(path: Path, keys: Mapping[str, MasterKey], new: MasterKey) -> bool:
    """Puts the data key under ``new``; False where it lay under that alone already. The data is not touched.

    Safe to be killed at any moment and to be repeated: the new slot is on disk before the old one is blanked.
    """
    with _opened(path, "r+b") as file:
        fixed = file.read(BLOCK)
        data_key = _data_key(path, file, keys, fixed)
        held = {start: _parsed(_at(file, start)) for start in SLOTS}
        own = [start for start, slot in held.items() if slot is not None and slot["key_id"] == new.id]
        own = [start for start in own if _unwrapped(new, held[start], fixed) == data_key]
        if not own:
            free = [start for start, slot in held.items() if slot is None]
            # Both taken: a rotation was killed halfway. Whatever does not open the file goes first.
            stale = [s for s in SLOTS if held[s] and _opened_by(keys, held[s], fixed) is None]
            own = [(free or stale or [SLOTS[1]])[0]]
            _put(file, own[0], _slot(new, data_key, fixed))
        others = [start for start in SLOTS if start != own[0] and any(_at(file, start))]
        for start in others:
            _put(file, start, bytes(BLOCK))
        return bool(others)


def _put(file: BinaryIO, place: int, block: bytes) -> None:
    file.seek(place)
    _write_all(file, block)
    os.fsync(file.fileno())


def _at(file: BinaryIO, place: int) -> bytes:
    file.seek(place)
    return file.read(BLOCK)


def _opened(path: Path, mode: str = "rb") -> Any:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise SealBroken(path, "cannot be opened (it is no file)")
    try:
        return open(path, mode, buffering=0)
    except OSError as error:
        raise SealBroken(path, f"cannot be opened ({error.strerror})") from error


def _fixed_header(context: str, chunk: int) -> bytes:
    text = json.dumps({"cipher": CIPHER, "chunk": chunk, "context": context}, sort_keys=True).encode()
    if len(MAGIC) + len(text) > BLOCK:
        raise ValueError("the context is too long")
    return (MAGIC + text).ljust(BLOCK, b" ")


def _slot(key: MasterKey, data_key: bytes, fixed: bytes) -> bytes:
    nonce = os.urandom(12)
    wrapped = AESGCM(key.wrapping_key()).encrypt(nonce, data_key, fixed + key.id.encode())
    text = json.dumps({"key_id": key.id, "nonce": _text(nonce), "wrapped": _text(wrapped)}, sort_keys=True)
    return text.encode().ljust(BLOCK, b" ")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _parsed(block: bytes) -> dict[str, Any] | None:
    """A slot's content; None where it is blank or no envelope."""
    if not any(block):
        return None
    try:
        slot = json.loads(block)
        found = {
            "key_id": str(slot["key_id"]),
            "nonce": base64.b64decode(slot["nonce"], validate=True),
            "wrapped": base64.b64decode(slot["wrapped"], validate=True),
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if len(found["nonce"]) == 12 else None


def _unwrapped(key: MasterKey, slot: dict[str, Any] | None, fixed: bytes) -> bytes | None:
    if slot is None:
        return None
    try:
        plain = AESGCM(key.wrapping_key()).decrypt(slot["nonce"], slot["wrapped"], fixed + key.id.encode())
    except InvalidTag:
        return None
    return plain if len(plain) == 32 else None


def _opened_by(keys: Mapping[str, MasterKey], slot: dict[str, Any] | None, fixed: bytes) -> bytes | None:
    key = keys.get(slot["key_id"]) if slot else None
    return None if key is None else _unwrapped(key, slot, fixed)


def _data_key(path: Path, file: BinaryIO, keys: Mapping[str, MasterKey], fixed: bytes) -> bytes:
    slots = [slot for start in SLOTS if (slot := _parsed(_at(file, start))) is not None]
    for slot in slots:
        found = _opened_by(keys, slot, fixed)
        if found is not None:
            return found
    if slots and not any(slot["key_id"] in keys for slot in slots):
        raise SealBroken(path, f"is sealed under key {slots[0]['key_id']}", "name its source: checkpoint.key=...")
    raise SealBroken(path, "has a header that was changed")


def _cipher(path: Path, file: BinaryIO, keys: Mapping[str, MasterKey], context: str) -> tuple[AESGCM, bytes, int]:
    """(cipher of the file's data key, fixed header, chunk size), with the file standing at the first chunk."""
    fixed = file.read(BLOCK)
    if not fixed.startswith(MAGIC) or len(fixed) != BLOCK:
        raise SealBroken(path, "is no sealed file")
    data_key = _data_key(path, file, keys, fixed)  # vouches for the fixed header as well
    head = json.loads(fixed[len(MAGIC) :])
    if head["context"] != context or head["cipher"] != CIPHER:
        raise SealBroken(path, f"is sealed as something else ({head['context']})")
    file.seek(START)
    return AESGCM(data_key), fixed, int(head["chunk"])


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _pieces(parts: Iterable[Any], size: int) -> Iterator[tuple[Any, bool]]:
    """(piece of ``size`` bytes, whether it is the last); the last may be shorter, and is empty where nothing came."""
    held: Any = None
    buffer = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            if not buffer and len(view) >= size:
                piece, view = view[:size], view[size:]
            else:
                taken = size - len(buffer)
                buffer += view[:taken]
                view = view[taken:]
                if len(buffer) < size:
                    continue
                piece, buffer = memoryview(buffer), bytearray()
            if held is not None:
                yield held, False
            held = piece
    if buffer or held is None:
        if held is not None:
            yield held, False
        held = memoryview(buffer)
    yield held, True


def _write_all(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
