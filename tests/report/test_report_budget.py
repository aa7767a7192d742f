from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.budget_view import account_data
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.privacy.ledger_audits import note_audit
from dptrain.report import budget_facts as facts
from dptrain.report.brief import brief
from dptrain.report.budget_page import render_budget_page
from dptrain.report.budget_plots import budget_figures
from dptrain.report.budget_read import KnownRun, history, next_runs, read_budget, read_runs, shares
from dptrain.report.record import read_record
from dptrain.report.write import write_budget
from dptrain.run_folder import RunFolder, read_json, write_json

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J&amp;$\\frac"
MakeRun = Callable[..., RunFolder]
START = datetime(2030, 1, 1, tzinfo=UTC)


def entry(number: int, epsilon: float, after: float, **changes: Any) -> dict[str, Any]:
    named = {"entry": number, "account": "people", "run_id": f"run-{number}", "purpose": "final", "label": ""}
    steps = {
        "planned_steps": 100,
        "committed_steps": 100,
        "steps_done": 100,
        "status": "settled",
        "event": {"type": "x"},
    }
    created = (START + timedelta(days=number)).isoformat()
    price = {"epsilon": epsilon, "delta": 1e-5, "epsilon_account_after": after, "created": created, "reason": ""}
    return named | steps | {"event": {"type": "x"}} | price | changes


def summary(*entries: dict[str, Any], spent: float | None = None, limit: float = 8.0, **changes: Any) -> dict[str, Any]:
    """What ``budget show`` prints, without the page's own additions."""
    stands = spent if spent is not None else (entries[-1]["epsilon_account_after"] if entries else 0.0)
    head = {"ledger_id": "a" * 32, "sequence": 9, "hash": "b" * 64, "key_id": "ed25519:c", "signature": "d"}
    shared = {"account": "people", "unit": "record", "limit": {"epsilon": limit, "delta": 1e-5, "changes": []}}
    numbers = {"spent": {"epsilon": stands, "proves": "enforced"}, "planned_pld": {"epsilon": None, "proves": "beside"}}
    state = {"frozen": False, "remaining": max(0.0, limit - stands), "entries": list(entries), "datasets": []}
    return shared | numbers | state | {"head": head} | changes


def event(sigma: float = 1.0, steps: int = 20) -> accounting.Event:
    return accounting.self_composed(steps, accounting.poisson_sampled(0.05, accounting.gaussian(sigma)))


def spend(ledger: Ledger, run: str, purpose: str = "final", sigma: float = 1.0, done: int = 20, **more: Any) -> None:
    made = ledger.reserve("people", event=event(sigma), run_id=run, purpose=purpose, delta=1e-5, epsilon=0.5, **more)
    ledger.commit(made, max(done, 1))
    ledger.settle(made, done)


@pytest.fixture
def ledger() -> Ledger:
    made = open_ledger(None)
    made.create_account("people", 8.0, 1e-5, digest="a" * 64)
    return made


def whole(page: str) -> str:
    """The page, after checking that it is well formed, runs nothing and asks nothing outside."""
    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    assert not re.search(r"\son\w+=", re.sub(r"&[a-z]+;.*?(?=<)", "", page))
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    return page


# --- pure functions of plain data


def test_an_empty_account_has_a_page() -> None:
    page = whole(render_budget_page(summary(), []))
    assert "0 entries" in page and "Nothing was charged" in page and "None was found" in page
    assert budget_figures(summary()) == {}


def test_one_entry_fills_its_bar() -> None:
    one = summary(entry(1, 1.0, 2.0))
    assert facts.parts(one) == {1: 2.0}
    assert facts.by_purpose(one) == [("final", 2.0, 1)]
    page = whole(render_budget_page(one, [KnownRun("run-1", None, "gone")]))
    assert "1 entry" in page and "width:25.000%" in page and "1 run has no folder" in page and "run-1: gone" in page


def test_parts_add_up_to_what_is_spent_with_shares_and_without() -> None:
    entries = [entry(k, 1.0, 0.5 * k) for k in range(1, 8)]
    plain = summary(*entries, spent=3.0)
    given = plain | {"shares": {k: (0.4 if k == 1 else 0.1) for k in range(1, 8)}}
    for one in (plain, given):
        assert sum(facts.parts(one).values()) == pytest.approx(3.0)
        assert sum(part for _, part, _ in facts.by_purpose(one)) == pytest.approx(3.0)
        assert sum(bar["part"] for bar in facts.bars(one)) == pytest.approx(3.0)
    assert facts.parts(given)[1] == pytest.approx(1.2)


def test_a_sweep_is_one_bar_and_its_label_is_its_name() -> None:
    trials = [entry(k, 0.5, 0.5 * k, purpose="trial", label="learning rates") for k in (1, 2, 3)]
    others = [entry(4, 0.5, 2.0, purpose="trial"), entry(5, 0.5, 2.5, label="learning rates")]
    names = [bar["name"] for bar in facts.bars(summary(*trials, *others))]
    assert names == ["learning rates (3 entries)", "run-4", "run-5"]


def test_two_hundred_entries_make_a_page_that_can_be_read() -> None:
    entries = [entry(k, 0.3, 0.03 * k, run_id=f"run-{k:04d}") for k in range(1, 201)]
    one = summary(*entries)
    page = whole(render_budget_page(one, [KnownRun(f"run-{k:04d}", None, "gone") for k in range(1, 201)]))
    assert page.count("settled") == 200 and "All 200 entries" in page and "200 runs have no folder" in page
    assert "smaller ones" in page
    assert len(page) < 400_000


def test_hostile_names_stay_text() -> None:
    bad = entry(1, 1.0, 2.0, run_id=HOSTILE, purpose=HOSTILE, label=HOSTILE, status=HOSTILE)
    named = {"account": HOSTILE, "unit": HOSTILE, "frozen": True, "frozen_reason": HOSTILE, "runs_root": HOSTILE}
    chain = {"rows": 1, "holds": False, "problems": [HOSTILE], "notes": [HOSTILE], "rollback": HOSTILE}
    one = summary(bad, **named, datasets=[{"digest": HOSTILE, "relation": HOSTILE}], chain=chain)
    one["limit"]["changes"] = [{"time": HOSTILE, "was": 1.0, "epsilon": 2.0, "reason": HOSTILE}]
    one["spent"]["proves"] = HOSTILE
    one["head"] = dict.fromkeys(one["head"], HOSTILE)
    page = render_budget_page(one, [KnownRun(HOSTILE, None, HOSTILE)]).replace("\x1b", "")
    whole(page)
    assert page.count("&lt;script&gt;") >= 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen": True, "frozen_reason": "under review"}, "Frozen: under review"),
        ({"spent_": 9.0}, "the limit was lowered"),
        ({"chain": {"problems": ["row 3: was changed"], "holds": False}}, "row 3: was changed"),
    ],
)
def test_what_must_not_be_overlooked_is_a_banner(changes: dict[str, Any], said: str) -> None:
    spent = changes.pop("spent_", None)
    page = whole(render_budget_page(summary(entry(1, 1.0, 2.0), spent=spent, **changes), []))
    assert re.search(rf'class="banner" role="alert">[^<]*{re.escape(said)}', page)


def test_an_account_in_order_has_no_banner() -> None:
    assert 'role="alert"' not in render_budget_page(summary(entry(1, 1.0, 2.0)), [])


def test_what_is_left_is_never_rounded_up() -> None:
    one = summary(entry(1, 1.0, 2.0), spent=4.9999, limit=5.0)
    assert [card.value for card in facts.cards(one, [])][:2] == ["5", "0"]
    assert facts.down(0.0019999) == "0.001"


def test_a_page_shows_the_numbers_of_the_json() -> None:
    coming = {"entry": 2, "purpose": "final", "epsilon": 1.25, "delta": 1e-5, "runs": 3}
    coming |= {"account_after_one": 4.0, "account_after_all": 7.5}
    chain = {"rows": 12, "holds": True, "problems": [], "notes": [], "rollback": "none up to row 12"}
    one = summary(entry(1, 1.0, 1.75), entry(2, 1.25, 3.125), next=coming, chain=chain)
    again = copy.deepcopy(one)
    page = whole(render_budget_page(one, []))
    assert one == again, "the page changed its input"
    for said in ("3.125", "4.875", "3 more runs like the newest (final, ε = 1.25) fit", "12 rows", "none up to row 12"):
        assert said in page
    assert page == render_budget_page(json.loads(json.dumps(one)), [])


def test_models_come_with_score_claim_audit_and_sentence(make_run: MakeRun) -> None:
    kept = make_run(name="run-1")
    rejected = make_run(name="run-2")
    audit = read_json(rejected.internal_audit)
    write_json(rejected.internal_audit, audit | {"rejected": True})
    known = [KnownRun(f.run_id, brief(read_record(f, "internal"), f.path)) for f in (kept, rejected)]
    page = whole(render_budget_page(summary(entry(1, 3.0, 3.5), entry(2, 3.0, 5.0)), known))
    assert page.index(">run-2</td>") < page.index(">run-1</td>"), "newest first"
    assert "92.6" in page and "2.998 at 1e-5" in page and "under one record&#x27;s contribution" in page
    assert "no contradiction; AUC 0.531" in page and "claim rejected; AUC 0.531" in page
    assert "2 audited, 1 rejected" in page


# --- from a real ledger and real folders


def test_history_and_shares_follow_the_ledger(ledger: Ledger) -> None:
    spend(ledger, "a")
    spend(ledger, "b", done=5)
    ledger.set_limit("people", 9.0, "more is allowed")
    open_now = ledger.reserve("people", event=event(), run_id="c", purpose="trial", delta=1e-5, epsilon=0.5)
    ledger.commit(open_now, 1)
    moments = history(ledger, "people")
    totals = ledger.totals("people", pld=False)
    assert moments[0]["epsilon"] == 0.0 and moments[-1]["epsilon"] == totals.epsilon
    assert [m["limit"] for m in moments][-2:] == [9.0, 9.0] and moments[1]["limit"] == 8.0
    after = {e["run_id"]: e["epsilon_account_after"] for e in totals.entries}
    seen = [m["epsilon"] for m in moments]
    assert after["b"] in seen and seen.index(after["b"]) < len(seen) - 1, "the refund of b is a step down"
    assert min(seen[seen.index(after["b"]) :]) < after["b"]
    part = shares(ledger, "people")
    assert sum(part.values()) == pytest.approx(1.0)
    names = {e["entry"]: e["run_id"] for e in totals.entries}
    by_run = {names[number]: share for number, share in part.items()}
    assert by_run["a"] == pytest.approx(4 * by_run["b"]), "20 and 5 steps of one kind"
    assert by_run["c"] == pytest.approx(by_run["a"]), "an open run counts whole"


def test_as_many_runs_fit_as_are_said_to(ledger: Ledger) -> None:
    assert next_runs(ledger, "people") is None
    spend(ledger, "a", sigma=0.8)
    coming = next_runs(ledger, "people")
    assert coming is not None and coming["runs"] > 1
    for k in range(coming["runs"]):
        spend(ledger, f"more-{k}", sigma=0.8)
    assert ledger.totals("people", pld=False).epsilon == pytest.approx(coming["account_after_all"])
    again = next_runs(ledger, "people")
    assert again is not None and again["runs"] == 0
    with pytest.raises(ConfigError, match="limit"):
        spend(ledger, "one-too-many", sigma=0.8)


def test_runs_are_found_by_id_and_missing_ones_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(name="a")
    (tmp_path / "sweep").mkdir()
    make_run(name="job-0").path.rename(tmp_path / "sweep" / "0")
    torn = make_run(name="torn")
    torn.result.write_bytes(b"\x80")
    renamed = make_run(name="renamed")
    write_json(renamed.result, read_json(renamed.result) | {"run_id": "by-its-id"})
    runs, heads = read_runs(["a", "by-its-id", "job-0", "torn", "gone", "a"], tmp_path)
    assert [(run.run_id, run.brief is not None) for run in runs] == [
        ("a", True),
        ("by-its-id", True),
        ("job-0", True),
        ("torn", False),
        ("gone", False),
    ]
    assert heads == []
    assert [run.brief for run in read_runs(["a"], tmp_path / "nowhere")[0]] == [None]


def test_heads_in_statements_show_a_ledger_that_was_put_back(ledger: Ledger, make_run: MakeRun, tmp_path: Path) -> None:
    spend(ledger, "a")
    folder = make_run(name="a")
    head = ledger.head()
    block = {"ledger_id": ledger.id, "total": 1.0, "head": {"sequence": head.sequence, "hash": head.hash}}
    write_json(folder.statement, read_json(folder.statement) | {"composition": block})
    known, _ = read_budget(None, "people", tmp_path)
    assert known["chain"]["holds"] and known["chain"]["rollback"].startswith("none up to row")
    block["head"] = {"sequence": head.sequence + 5, "hash": "e" * 64}
    write_json(folder.statement, read_json(folder.statement) | {"composition": block})
    rolled, runs = read_budget(None, "people", tmp_path)
    assert rolled["chain"]["rollback"] != "unknown" and not rolled["chain"]["holds"]
    assert 'role="alert"' in render_budget_page(rolled, runs)


def test_the_page_is_written_and_agrees_with_budget_show(
    ledger: Ledger, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(name="a")
    ledger.reserve("people", event=None, run_id="try", purpose="debug", delta=1e-5, epsilon=0.0)
    for k in range(3):
        spend(ledger, f"t{k}", "trial", label="rates")
    spend(ledger, "a")
    note_audit(ledger, "people", run_id="a", bundle="ab" * 32, attacks=["loss", "<rmia>"])
    path, lines = write_budget(None, "people", str(tmp_path), None)
    assert path == Path("budget-people.html") and (path.stat().st_mode & 0o777) == 0o600
    page, data = whole(path.read_text(encoding="utf-8")), account_data(ledger, "people")
    assert facts.epsilon_up(data["spent"]["epsilon"]) in page
    assert facts.epsilon_up(data["planned_pld"]["epsilon"]) in page
    for one in data["entries"]:
        assert one["run_id"] in page and facts.epsilon_up(one["epsilon_account_after"]) in page
    assert "Audits (1): no price" in page and "loss, &lt;rmia&gt;" in path.read_text(encoding="utf-8")
    assert "rates (3 entries)" in page and "92.6" in page and "1 audited; 4 more runs without a folder here" in page
    assert dict(lines)["page"] == "budget-people.html"


def test_strangers_and_absent_ledgers_are_one_line(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="people"):
        write_budget(None, "peopel", str(tmp_path), None)
    with pytest.raises(ConfigError, match="no ledger"):
        write_budget(f"sqlite:///{tmp_path}/none.db", "people", str(tmp_path), None)
