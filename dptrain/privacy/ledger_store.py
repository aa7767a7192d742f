"""Where a ledger's rows lie: SQLite or PostgreSQL, by one code path through SQLAlchemy Core.

Two tables and a secret: rows (append-only, guarded by triggers against a careless hand), the head (one line, rewritten
with every row). A write holds the ledger alone from its first read to its commit: BEGIN IMMEDIATE in SQLite, an
advisory lock in PostgreSQL (which also covers the making of the tables). A read sees one state of it. When ``write``
returns, the rows are on disk: SQLite in WAL mode with ``synchronous=FULL``, PostgreSQL with ``synchronous_commit=on``
(a server with ``fsync=off`` is refused).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import ConfigError, one_line
from dptrain.privacy.chain import Head, LedgerBroken

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WAIT_SECONDS = 30.0
"""How long a write waits for another process to finish its own."""
LOCK = 7235421
"""Number of the advisory lock that writers hold in PostgreSQL."""
_GUARD = {
    "sqlite": [
        "CREATE TRIGGER IF NOT EXISTS dptrain_ledger_no_{what} BEFORE {what} ON dptrain_ledger_rows "
        "BEGIN SELECT RAISE(ABORT, 'rows of the ledger are append-only'); END"
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION dptrain_ledger_guard() RETURNS trigger AS $$ BEGIN "
        "RAISE EXCEPTION 'rows of the ledger are append-only'; END $$ LANGUAGE plpgsql",
        "CREATE OR REPLACE TRIGGER dptrain_ledger_no_{what} BEFORE {what} ON dptrain_ledger_rows "
        "FOR EACH ROW EXECUTE FUNCTION dptrain_ledger_guard()",
    ],
}


class LedgerStore:
    """Rows, head and secret of one ledger; knows nothing of budgets.

    Args:
        uri: ``sqlite:///FILE`` or ``postgresql+psycopg://...``.
        wait: seconds to wait for a lock.

    Raises:
        ConfigError: the address is not one of these, or its driver is not installed.
    """

    def __init__(self, uri: str, wait: float = WAIT_SECONDS) -> None:
        from sqlalchemy import Column, Integer, MetaData, Table, Text
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            self.url = make_url(uri)
        except ArgumentError as error:
            raise _address(uri, "is not an address of a database") from error
        self.place = self.url.render_as_string(hide_password=True)
        self.wait = wait
        self.dialect = self.url.get_backend_name()
        if self.url.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
            raise _address(self.place, "is neither SQLite nor PostgreSQL")
        if self.dialect == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        elif self.url.database in (None, "", ":memory:"):
            raise _address(self.place, "forgets everything when the process ends")
        else:
            self.url = self.url.set(database=str(Path(str(self.url.database)).expanduser().absolute()))
            self.place = self.url.render_as_string(hide_password=True)
        tables = MetaData()
        self._rows = Table(
            "dptrain_ledger_rows",
            tables,
            Column("sequence", Integer, primary_key=True, autoincrement=False),
            Column("text", Text, nullable=False),
            Column("hash", Text, nullable=False),
        )
        names = ("ledger_id", "hash", "key_id", "signature", "public_key")
        self._head = Table(
            "dptrain_ledger_head",
            tables,
            Column("only", Integer, primary_key=True, autoincrement=False),
            Column("sequence", Integer, nullable=False),
            *(Column(name, Text, nullable=False) for name in names),
        )
        self._secret = Table("dptrain_ledger_secret", tables, Column("secret", Text, primary_key=True))
        self._tables = tables
        self._engine: Engine | None = None
        self._pid = os.getpid()

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(str(self.url.database)) if self.dialect == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent look; writes nothing."""
        with self._transaction(writing=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that has the ledger to itself; on disk when it ends, undone when it raises."""
        with self._transaction(writing=True) as connection:
            yield connection

    def exists(self) -> bool:
        """Whether a ledger has been made here."""
        from sqlalchemy import inspect

        if self.file is not None:
            try:
                if not self.file.exists():
                    return False
            except OSError as error:
                raise ConfigError(
                    "ledger", self.place, f"cannot be read ({error.strerror})", "mend its rights"
                ) from error
        with self.read() as connection:
            return inspect(connection).has_table("dptrain_ledger_head") and self.head(connection) is not None

    def make(self, connection: Connection, secret: bytes) -> None:
        """Makes tables, guards and the secret, inside a ``write``."""
        self._tables.create_all(connection)
        connection.execute(self._secret.insert().values(secret=secret.hex()))
        for what in ("UPDATE", "DELETE"):
            for statement in _GUARD[self.dialect]:
                connection.exec_driver_sql(statement.format(what=what))

    def has_tables(self, connection: Connection) -> bool:
        """Whether the tables are there, seen from inside a transaction."""
        from sqlalchemy import inspect

        return inspect(connection).has_table("dptrain_ledger_head")

    def head(self, connection: Connection) -> Head | None:
        """The head as written; its signature is not checked here."""
        found = connection.execute(self._head.select()).mappings().first()
        try:
            return Head.from_json(dict(found)) if found else None
        except ValueError as error:
            raise LedgerBroken("head", "was changed: it is no head of a ledger") from error

    def rows(self, connection: Connection, after: int = 0) -> Iterator[tuple[int, str, str]]:
        """(sequence, text, hash) of the rows behind ``after``, in order."""
        query = self._rows.select().where(self._rows.c.sequence > after).order_by(self._rows.c.sequence)
        for row in connection.execute(query.execution_options(yield_per=2000)):
            yield row[0], row[1], row[2]

    def row_hash(self, connection: Connection, sequence: int) -> str | None:
        """The hash of one row; None where there is none."""
        query = self._rows.select().where(self._rows.c.sequence == sequence)
        found = connection.execute(query).mappings().first()
        return found["hash"] if found else None

    def append(self, connection: Connection, head: Head, text: str) -> None:
        """Adds a row and moves the head to it."""
        values: dict[str, Any] = head.to_json()
        connection.execute(self._rows.insert().values(sequence=head.sequence, text=text, hash=head.hash))
        if head.sequence == 1:
            connection.execute(self._head.insert().values(only=1, **values))
        else:
            connection.execute(self._head.update().where(self._head.c.only == 1).values(**values))

    def secret(self, connection: Connection) -> bytes:
        """The ledger's key of data-set digests (32 bytes)."""
        found = connection.execute(self._secret.select()).first()
        if found is None:
            raise ConfigError("ledger", self.place, "has lost its secret", "restore the ledger from a copy")
        try:
            return bytes.fromhex(found[0])
        except (TypeError, ValueError) as error:
            raise LedgerBroken("secret", "was changed: it is no secret of a ledger") from error

    def close(self) -> None:
        """Lets go of the database."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def _transaction(self, writing: bool) -> Iterator[Connection]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._connect().connect() as opened:
                level = {"isolation_level": "READ COMMITTED" if writing else "REPEATABLE READ"}
                options = level if self.dialect == "postgresql" else {"dptrain_writing": writing}
                connection = opened.execution_options(**options)
                with connection.begin():
                    if writing and self.dialect == "postgresql":
                        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                    yield connection
        except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in a message that is no text itself
            raise self._refusal(sqlite3.DatabaseError("malformed: holds what is no text")) from error
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self._refusal(error) from error

    def _connect(self) -> Engine:
        if self._engine is not None and self._pid != os.getpid():
            self._engine.dispose(close=False)  # a forked child leaves its parent's connection alone
            self._engine = None
        if self._engine is None:
            self._engine, self._pid = self._new_engine(), os.getpid()
        return self._engine

    def _new_engine(self) -> Engine:
        from sqlalchemy import create_engine, event

        if self.dialect == "sqlite":
            engine = create_engine(self.url, connect_args={"timeout": self.wait})
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        settings = f"-c synchronous_commit=on -c lock_timeout={int(self.wait * 1000)}"
        try:
            engine = create_engine(self.url, connect_args={"options": settings, "connect_timeout": 10})
        except ImportError as error:
            raise ConfigError(
                "ledger.uri", self.place, "needs psycopg, which is not installed", "pip install 'dptrain[postgres]'"
            ) from error
        event.listen(engine, "connect", self._set_up_postgresql)
        return engine

    def _set_up_postgresql(self, connection: Any, _: Any) -> None:
        if connection.execute("SHOW fsync").fetchone()[0] != "on":
            raise ConfigError("ledger.uri", self.place, "its server runs with fsync=off", "turn fsync on")
        connection.rollback()

    def _refusal(self, error: Exception) -> ConfigError:
        cause = getattr(error, "orig", None) or error
        reason = one_line(str(cause)).split(" DETAIL:")[0][:200]
        remedy = "nothing was spent; mend it and run again"
        if "locked" in reason or "lock timeout" in reason:
            reason, remedy = f"was held by another process for {self.wait:g} s", "wait for it to end, then run again"
        elif "readonly" in reason or "unable to open" in reason:
            reason, remedy = f"cannot be written ({reason})", "mend its permissions and those of its folder"
        elif "full" in reason or "disk I/O" in reason or "No space" in reason:
            reason, remedy = f"cannot be written ({reason})", "free space; what was written before is whole"
        elif "no such table" in reason or "not a database" in reason or "malformed" in reason:
            reason, remedy = f"is not a ledger ({reason})", "name another, or restore it from a copy"
        return ConfigError("ledger", self.place, reason, remedy)


def _address(uri: object, problem: str) -> ConfigError:
    return ConfigError("ledger.uri", uri, problem, "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE")


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if "readonly" not in str(error):
            raise
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Any) -> None:
    writing = connection.get_execution_options().get("dptrain_writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
