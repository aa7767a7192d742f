"""Figures of docs/results/ledger.md: what the ledger costs, and that it loses and overspends nothing.

python scripts/bench_ledger.py cost [URI]          milliseconds a commit and a reserve; opening after many rows
python scripts/bench_ledger.py race [URI]          8 processes, 10,000 reservations on one limit
python scripts/bench_ledger.py kill [KILLS]        kill -9 at random moments, releases counted outside
python scripts/bench_ledger.py compose             200 different planned runs against direct composition
python scripts/bench_ledger.py filter              runs that fit: filter, Renyi and PLD composition of fixed runs

URI: postgresql+psycopg://USER@HOST/DATABASE (an empty database); left out: a SQLite file in a new folder of its own,
made in TMPDIR. Every command prints lines of JSON.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dptrain.errors import BudgetRefused
from dptrain.privacy import accounting
from dptrain.privacy.chain import verify_chain
from dptrain.privacy.composition import _step, compose_epsilon
from dptrain.privacy.lease import lease_size
from dptrain.privacy.ledger import Ledger, default_uri, open_ledger

RUN = accounting.self_composed(1000, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))
SMALL = accounting.self_composed(10, accounting.poisson_sampled(0.01, accounting.gaussian(4.0)))


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def milliseconds(times: list[float]) -> dict[str, float]:
    times = sorted(times)
    return {
        "median_ms": round(1e3 * times[len(times) // 2], 2),
        "p99_ms": round(1e3 * times[int(len(times) * 0.99)], 2),
    }


def reserve(ledger: Ledger, run_id: str, event: accounting.Event = SMALL) -> Any:
    return ledger.reserve("a", event=event, run_id=run_id, purpose="trial", delta=1e-6, epsilon=0.1)


def cost(uri: str) -> None:
    ledger = open_ledger(uri)
    ledger.create_account("a", 1000, 1e-5)
    held = reserve(ledger, "warm-up", RUN | {"count": 10**6})
    kind = ledger.store.dialect
    taken = []
    for steps in range(1, 501):
        begin = time.perf_counter()
        ledger.commit(held, steps)
        taken.append(time.perf_counter() - begin)
    found = milliseconds(taken)
    leases = {f"{step} s a step": lease_size(step, found["median_ms"] / 1e3) for step in (0.5, 0.1, 0.02, 0.005)}
    say(what="commit", on=kind, **found, lease=leases)
    rows = 501
    for goal in (1_000, 10_000):
        while rows < goal:
            ledger.commit(held, rows)
            rows += 1
        ledger.close()
        begin = time.perf_counter()
        again = open_ledger(uri)
        opened = time.perf_counter() - begin
        taken = []
        for n in range(50):
            begin = time.perf_counter()
            reserve(again, f"r{goal}-{n}")
            taken.append(time.perf_counter() - begin)
        say(
            what="open and reserve", on=kind, rows=again.head().sequence, open_s=round(opened, 3), **milliseconds(taken)
        )
        again.close()
    begin = time.perf_counter()
    verdict = verify_chain(ledger)
    say(what="verify", on=kind, rows=verdict.rows, holds=verdict.holds, seconds=round(time.perf_counter() - begin, 2))
    ledger.close()


def racer(uri: str, number: int, attempts: int, answers: Any) -> None:
    ledger = open_ledger(uri)
    admitted = refused = 0
    for n in range(attempts):
        try:
            reserve(ledger, f"p{number}-{n}")
            admitted += 1
        except BudgetRefused:
            refused += 1
    ledger.close()
    answers.put((admitted, refused))


def race(uri: str, processes: int = 8, attempts: int = 10_000) -> None:
    ledger = open_ledger(uri)
    ledger.create_account("a", 1.0, 1e-5, typical=SMALL)
    context = mp.get_context("spawn")
    answers = context.Queue()
    begin = time.perf_counter()
    made = [context.Process(target=racer, args=(uri, n, attempts // processes, answers)) for n in range(processes)]
    for process in made:
        process.start()
    told = [answers.get() for _ in made]
    seconds = time.perf_counter() - begin
    totals = ledger.totals("a", pld=False)
    admitted = sum(one for one, _ in told)
    refused = sum(one for _, one in told)
    verdict = verify_chain(ledger)
    say(
        what="race",
        on=ledger.store.dialect,
        processes=processes,
        reservations=admitted + refused,
        admitted=admitted,
        refused=refused,
        rows_lost=admitted - len(totals.entries),
        limit=totals.limit_epsilon,
        stands_at=totals.epsilon,
        with_one_more=ledger.what_if("a", SMALL),
        overspend=max(0.0, totals.epsilon - totals.limit_epsilon),
        chain_holds=verdict.holds,
        seconds=round(seconds, 1),
    )
    ledger.close()


def kill(kills: int) -> None:
    writer = Path(__file__).resolve().parent.parent / "tests" / "faults" / "ledger_writer.py"
    for lease in (1, 20):
        folder = Path(tempfile.mkdtemp())
        uri, releases, draw = f"sqlite:///{folder}/ledger.db", folder / "releases", random.Random(lease)
        releases.touch()
        ledger = open_ledger(uri)
        ledger.create_account("a", 1000, 1e-5)
        entry = reserve(ledger, "r", RUN | {"count": 10**7}).entry
        under = over = 0
        for _ in range(kills // 2):
            seen = releases.stat().st_size
            child = subprocess.Popen([sys.executable, str(writer), uri, str(releases), str(entry), str(lease)])
            while releases.stat().st_size <= seen and child.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            child.wait()
            ledger.log.refresh()
            charged, released = ledger.state.entries[entry].committed_steps, releases.stat().st_size
            under = max(under, released - charged)
            over = charged - released
        say(
            what="kill -9",
            lease=lease,
            kills=kills // 2,
            released=releases.stat().st_size,
            charged=ledger.state.entries[entry].committed_steps,
            under_counted=under,
            over_counted=over,
            over_counted_a_kill=round(over / (kills // 2), 2),
            chain_holds=verify_chain(ledger).holds,
        )


def compose() -> None:
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as pld

    for seed, scale in ((1, 1.0), (2, 2.5), (3, 8.0)):
        draw = random.Random(seed)
        rates = [draw.choice([0.002, 0.005, 0.01, 0.02, 0.05]) * draw.uniform(0.8, 1.2) for _ in range(200)]
        runs = [(rate, draw.uniform(1, 4) * scale, draw.randint(100, 3000)) for rate in rates]
        parts = [(accounting.poisson_sampled(q, accounting.gaussian(s)), steps) for q, s, steps in runs]
        compose_epsilon(parts[:2], 1e-5)  # imports
        _step.cache_clear()
        wall, cpu = time.perf_counter(), time.process_time()
        found = compose_epsilon(parts, 1e-5)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        begin, whole = time.perf_counter(), None
        for rate, sigma, steps in runs:
            one = pld.from_gaussian_mechanism(
                sigma,
                value_discretization_interval=1e-4,
                sampling_prob=rate,
                neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL,
            ).self_compose(steps)
            whole = one if whole is None else whole.compose(one)
        assert whole is not None
        direct = float(whole.get_epsilon_for_delta(1e-5))
        ledger = open_ledger(f"sqlite:///{tempfile.mkdtemp()}/ledger.db")
        ledger.create_account("a", 1000, 1e-5)
        for n, (step, steps) in enumerate(parts):
            reserve(ledger, f"r{n}", accounting.self_composed(steps, step))
        say(
            what="compose",
            runs=200,
            epsilon=round(found, 4),
            direct=round(direct, 4),
            ratio=round(found / direct, 5),
            wall_s=round(wall, 2),
            cpu_s=round(cpu, 2),
            direct_s=round(time.perf_counter() - begin, 1),
            filter=round(ledger.totals("a", pld=False).epsilon, 4),
        )


def filters() -> None:
    shapes = [(0.01, 1.2, 1000), (0.01, 0.7, 100), (0.1, 2.0, 300), (1.0, 20.0, 1), (0.001, 0.6, 2000)]
    for limit in (3.0, 8.0):
        for rate, sigma, steps in shapes:
            step = accounting.poisson_sampled(rate, accounting.gaussian(sigma))
            fits = runs_that_fit(limit, accounting.self_composed(steps, step))
            say(what="runs that fit", limit=limit, run=[rate, sigma, steps], **fits)


def runs_that_fit(limit: float, event: accounting.Event) -> dict[str, float]:
    def many(runs: int) -> accounting.Event:
        return event | {"count": runs * event["count"]}

    found: dict[str, float] = {"epsilon_of_one": round(accounting.epsilon(event, 1e-5), 3)}
    for name, typical in (("filter", None), ("filter_typical", event)):
        ledger = open_ledger(f"sqlite:///{tempfile.mkdtemp()}/ledger.db")
        ledger.create_account("a", limit, 1e-5, typical=typical)
        found[name] = most(lambda n, ledger=ledger: ledger.admits("a", many(n)))
    found["rdp"] = most(lambda n: accounting.rdp_epsilon(many(n), 1e-5) <= limit)
    found["pld"] = most(lambda n: accounting.epsilon(many(n), 1e-5, interval=1e-3) <= limit)
    return found


def most(fits: Any) -> int:
    low, high = 0, 1
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main(words: list[str]) -> None:
    os.environ["DPTRAIN_HOME"] = tempfile.mkdtemp()
    verb, rest = words[0], words[1:]
    uri = rest[0] if rest else default_uri()
    verbs = {"cost": lambda: cost(uri), "race": lambda: race(uri), "compose": compose, "filter": filters}
    verbs["kill"] = lambda: kill(int(rest[0]) if rest else 1000)
    verbs[verb]()


if __name__ == "__main__":
    main(sys.argv[1:])
