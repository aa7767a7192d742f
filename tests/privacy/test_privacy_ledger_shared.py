"""Many writers on one limit, on SQLite and on a real PostgreSQL: nothing overspent, no row lost."""

from __future__ import annotations

import multiprocessing as mp
import os
import secrets
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptrain.errors import BudgetRefused, ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.chain import verify_chain
from dptrain.privacy.ledger import default_uri, open_ledger
from dptrain.privacy.privacy_filter import value

EVENT = accounting.self_composed(10, accounting.poisson_sampled(0.05, accounting.gaussian(1.5)))


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place for one ledger; a database of its own on the server that ``.ci/run`` starts."""
    if request.param == "sqlite":
        yield default_uri()
        return
    server = os.environ.get("DPTRAIN_TEST_POSTGRES", "")
    if not server:
        pytest.skip("no PostgreSQL: DPTRAIN_TEST_POSTGRES names none (bash scripts/postgres.sh start FOLDER makes one)")
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url

    name = f"ledger_{secrets.token_hex(6)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


def test_one_story_from_making_to_verifying(uri: str) -> None:
    ledger = open_ledger(uri)
    ledger.create_account("adult", 8, 1e-5, digest="ab" * 32)
    held = ledger.reserve("adult", event=EVENT, run_id="r1", purpose="final", delta=1e-5, epsilon=1.0)
    ledger.commit(held, 10)
    ledger.settle(held, 4)
    other = open_ledger(uri)
    assert other.state == ledger.state and other.secret == ledger.secret
    verdict = verify_chain(other, [ledger.head().to_json()])
    assert verdict.holds and verdict.rollback == "none up to row 6"
    assert [row["kind"] for row in other.rows()] == ["ledger", "account", "link", "reserve", "commit", "settle"]
    other.close()
    ledger.close()


def test_the_server_guards_its_rows_too(uri: str) -> None:
    from sqlalchemy.exc import DBAPIError

    ledger = open_ledger(uri)
    for statement in ("DELETE FROM dptrain_ledger_rows", "UPDATE dptrain_ledger_rows SET hash=''"):
        with pytest.raises(DBAPIError, match="append-only"), ledger.store._connect().begin() as connection:
            connection.exec_driver_sql(statement)
    ledger.close()


def race(uri: str, number: int, attempts: int, answers: mp.Queue) -> None:
    ledger = open_ledger(uri)
    admitted = refused = 0
    for n in range(attempts):
        try:
            held = ledger.reserve(
                "adult", event=EVENT, run_id=f"p{number}-{n}", purpose="trial", delta=1e-5, epsilon=1.0
            )
            admitted += 1
            if n % 3 == 0:
                ledger.commit(held, 5)
                ledger.settle(held, 5)
        except BudgetRefused:
            refused += 1
    ledger.close()
    answers.put((admitted, refused))


def test_racing_processes_overspend_nothing_and_lose_no_row(uri: str) -> None:
    """Three processes, 90 reservations; ``scripts/bench_ledger.py race`` does eight and 10,000."""
    ledger = open_ledger(uri)
    ledger.create_account("adult", 1.5, 1e-5, typical=EVENT)
    context = mp.get_context("spawn")
    answers = context.Queue()
    racers = [context.Process(target=race, args=(uri, number, 30, answers)) for number in range(3)]
    for racer in racers:
        racer.start()
    told = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    admitted, refused = (sum(column) for column in zip(*told, strict=True))
    totals = ledger.totals("adult", pld=False)
    assert admitted + refused == 90 and admitted > 0 and refused > 0
    assert len(totals.entries) == admitted, "every admission is a row"
    assert totals.epsilon <= 1.5
    assert ledger.what_if("adult", EVENT) > 1.5, "and the limit was really reached"
    assert verify_chain(ledger).holds
    ledger.close()


def test_two_processes_making_one_ledger_agree(uri: str) -> None:
    context = mp.get_context("spawn")
    with context.Pool(3) as pool:
        ids = pool.map(_id_of, [uri] * 3)
    assert len(set(ids)) == 1


def _id_of(uri: str) -> str:
    ledger = open_ledger(uri)
    ledger.close()
    return ledger.id


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError) as refused:
        open_ledger("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    assert "\n" not in str(refused.value) and "ledger=" in str(refused.value)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["reserve", "commit", "settle", "abandon", "resume"]), st.integers(0, 9)),
    min_size=5,
    max_size=40,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_what_was_executed_never_weighs_more_than_the_limit(actions: list[tuple[str, int]]) -> None:
    """Whatever is asked in whatever order: executed steps, counted outside, stay within the account's totals."""
    ledger = open_ledger(f"sqlite:///{os.environ['DPTRAIN_HOME']}/{secrets.token_hex(6)}.db")
    ledger.create_account("a", 2.0, 1e-5, typical=EVENT)
    account = ledger.account("a")
    executed: dict[str, int] = {}
    holds = {}
    prices: tuple[int, ...] = ()
    for n, (action, number) in enumerate(actions):
        run = f"r{number}"
        try:
            if action == "reserve":
                name = f"{run}-{n}"
                made = ledger.reserve("a", event=EVENT, run_id=name, purpose="trial", delta=1e-5, epsilon=1.0)
                prices, holds[run] = ledger.state.entries[made.entry].prices, made
            elif run in holds and action == "commit":
                ledger.commit(holds[run], number + 1)
                executed[holds[run].run_id] = number + 1
            elif run in holds and action == "settle":
                ledger.settle(holds[run], executed.get(holds[run].run_id, 0))
            elif run in holds and action == "abandon":
                ledger.abandon(holds[run].run_id, "test")
            elif run in holds:
                holds[run] = ledger.resume(holds[run].entry)
        except ConfigError:
            continue
    steps = sum(executed.values())
    account = ledger.account("a")
    assert all(charged >= steps * price for charged, price in zip(account.charged, prices, strict=False))
    assert value(account.rules, account.charged) <= value(account.rules, account.reserved) <= 2.0
    assert open_ledger(ledger.store.place).state == ledger.state
    ledger.close()
