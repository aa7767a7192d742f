"""Where MLflow keeps runs: the address, checked before anything is written, and the lock of an embedded store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dptrain.config_tracking import refuse_plain_http, shown
from dptrain.errors import ConfigError

REMEDY = "use sqlite:///FILE, http(s)://SERVER, postgresql://..., or leave it unset for mlflow.db beside you"
SERVERS = ("http", "https", "databricks")
DATABASES = ("postgresql", "mysql", "mssql")
SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class Store:
    """A checked address.

    Attributes:
        uri: what MLflow is given; sqlite files by absolute path.
        database: the file of an embedded store, else None.
        artifacts: folder of the artifacts when this machine keeps them, else None (a server decides).
    """

    uri: str
    database: Path | None
    artifacts: Path | None

    @property
    def is_server(self) -> bool:
        """Whether somebody else's process answers, which may be slow or gone."""
        return self.database is None

    @property
    def shown(self) -> str:
        """The address without user names and passwords."""
        return shown(self.uri)


def resolve_store(uri: str | None, allow_http: bool = False) -> Store:
    """Checks ``tracking.uri``; nothing is made or contacted.

    Args:
        uri: an MLflow store; None for ``sqlite:///mlflow.db`` in the working directory.
        allow_http: whether a server on another host may be spoken to without TLS.

    Raises:
        ConfigError: the scheme is unknown, the file is not a database, or the server is not to be spoken to like that.
    """
    if uri is None:
        uri = "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        return _embedded(uri)
    if scheme in SERVERS:
        if scheme != "databricks" and not urlsplit(uri).hostname:
            raise ConfigError("tracking.uri", shown(uri), "names no server", REMEDY)
        refuse_plain_http("tracking.uri", uri, allow_http)
        return Store(uri, None, None)
    if scheme in DATABASES:
        return Store(uri, None, Path.cwd() / "mlruns")
    problem = "MLflow no longer keeps runs in plain folders" if scheme in ("", "file") else "is of an unknown kind"
    raise ConfigError("tracking.uri", shown(uri), problem, REMEDY)


def _embedded(uri: str) -> Store:
    prefix, _, rest = uri.partition(":///")
    name, _, query = rest.partition("?")
    if not name or name == ":memory:":
        raise ConfigError("tracking.uri", uri, "names no file", REMEDY)
    database = Path(name).expanduser().absolute()
    if database.is_dir():
        raise ConfigError("tracking.uri", uri, "is a folder", "name a file, such as sqlite:///mlflow.db")
    try:
        head = _head(database)
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise ConfigError("tracking.uri", uri, f"cannot be read ({error.strerror})", "name another file") from error
    if head and head != SQLITE_MAGIC:
        raise ConfigError("tracking.uri", uri, "is not a sqlite database", "name another file")
    whole = f"{prefix}:///{database}" + (f"?{query}" if query else "")
    return Store(whole, database, database.parent / "mlruns")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


@contextmanager
def creation_lock(store: Store) -> Iterator[None]:
    """Holds the embedded store against other first users, so that one of them makes it and the rest find it made.

    Without it, parallel first users race through the migrations and all but one may die. The lock is a
    file beside the database and goes with the process that holds it. A server needs none.
    """
    if store.database is None:
        yield
        return
    import fcntl

    store.database.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(f"{store.database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
