"""What a whole run leaves behind: the count, the claim, the weights and the files, beside what was seen of it."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator

import torch

from dptrain.conformance.price import CLOSE, Spent
from dptrain.conformance.stand import Result, Stand
from dptrain.conformance.whole_run import BATCH, KILLED, MOST_ROWS, PEOPLE, STEPS, Traces, killed_and_resumed, same

PUBLIC_RECORD = ("step", "seconds", "epsilon", "budget_spent", "budget_remaining", "public_loss")
"""What a public record may hold beside ``test_...``."""
BUNDLE = {"statement.json", "model.json", "model.safetensors", "manifest.json", "signature.json"}
KEPT = ("model.", "optimizer", "average", "random", "best", "selfcheck")
"""What the tensors of a resume state may be called."""


def left_behind(stand: Stand) -> Iterator[Result]:
    """A run that is killed in its fourth step, its noise drawn, and taken up again to its end."""
    if stand.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        yield Result("whole run", None, "not on a CPU, or no fork here")
        return
    traces = killed_and_resumed(stand)
    if isinstance(traces, str):
        yield Result("whole run", False, traces)
        return
    yield as_it_goes(traces)
    yield counted(traces)
    yield claimed(stand, traces)
    yield kept(traces)


def as_it_goes(traces: Traces) -> Result:
    """Releases, post-processing, states and public metrics of both attempts."""
    wrong = [*traces.before.wrong, *traces.after.wrong]
    if not wrong and not same(traces.wanted, traces.weights):
        wrong = ["the bundle's weights are not what the releases make of them"]
    seen = len(traces.before.noise) + len(traces.after.noise)
    says = f"{seen} steps of two attempts: weights, states and public metrics follow from the releases"
    return Result("whole run", not wrong, "; ".join(wrong[:3]) if wrong else says)


def counted(traces: Traces) -> Result:
    """No more noise vectors than steps charged, planned and stated; none twice; a dead process's steps count."""
    name, before, after = "whole run, count", traces.before, traces.after
    drawn, stated = [*before.noise, *after.noise], int(traces.statement["sampling"]["steps_done"])
    told = f"{len(before.noise)} noise vectors before the kill, {len(after.noise)} after it"
    if after.first < len(before.noise):
        return Result(name, False, f"{told}; {after.first} steps count as executed when it goes on", KILLED)
    for what, count in (("planned", STEPS), ("charged", traces.charged), ("stated", stated)):
        if len(drawn) > count:
            return Result(name, False, f"{told}; {count} steps are {what}", len(drawn))
    for which in (before, after):
        if which.intended != list(range(which.first + 1, which.first + 1 + len(which.noise))):
            return Result(name, False, f"steps {which.intended} are declared behind {which.first}; {told}")
    twice = sum(torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    if twice:
        return Result(name, False, f"{twice} noise vectors of one run come twice")
    return Result(name, True, f"{told}; {after.first} count when it goes on, {traces.charged} are charged in the end")


def claimed(stand: Stand, traces: Traces) -> Result:
    """The statement's public numbers are the run's, and its epsilons are not below what was released costs."""
    name, statement = "whole run, claim", traces.statement
    mechanism, sampling, guarantee = statement["mechanism"], statement["sampling"], statement["guarantee"]
    slack = stand.config.privacy.sensitivity_slack
    most = 1 if stand.config.clipping.engine == "opacus_ghost" else MOST_ROWS
    pairs = {
        "noise_multiplier": (mechanism["noise_multiplier"], 3.0),
        "clipping_norm": (mechanism["clipping_norm"], 0.7),
        "sensitivity": (mechanism["sensitivity"], 0.7 * (1.0 + slack)),
        "divisor": (mechanism["divisor"], BATCH),
        "rate": (sampling["rate"], BATCH / PEOPLE),
        "steps_planned": (sampling["steps_planned"], STEPS),
        "max_rows": (statement["unit"]["max_rows"], most),
        "delta": (guarantee["delta"], 1e-5),
    }
    for what, (found, wanted) in pairs.items():
        if not math.isclose(found, wanted, rel_tol=1e-9):
            return Result(name, False, f"{what} is stated as {found:g}, and was {wanted:g}")
    words = {"private": (statement["private"], True), "unit": (statement["unit"]["kind"], "user")}
    words["noise"] = (statement["randomness"]["noise"], stand.config.privacy.noise)
    words["self-check"] = (statement["selfcheck"], {"state": "off"})
    for what, (found, wanted) in words.items():
        if found != wanted:
            return Result(name, False, f"{what} is stated as {found}, and was {wanted}")
    cost = Spent(3.0, BATCH / PEOPLE, STEPS, "zero_out")
    curve = guarantee["epsilon_at"]
    least = cost.least([1e-5, *(point["delta"] for point in curve)])
    claims = [("at its end", guarantee["epsilon"], least[0])]
    claims += [(f"at delta {p['delta']:g}", p["epsilon"], low) for p, low in zip(curve, least[1:], strict=True)]
    claims.append(("of this run on its account", statement["composition"]["this_run"], least[0]))
    claims.append(("of all runs on its account", statement["composition"]["total"], least[0]))
    last = traces.records[-1]
    claims += [("in its last record", last["epsilon"], least[0]), ("spent in it", last["budget_spent"], least[0])]
    for where, told, low in claims:
        if not told >= low * (1.0 - CLOSE):
            return Result(name, False, f"epsilon {told:.4f} is claimed {where}, and {low:.4f} is the least it costs")
    return Result(name, True, f"public numbers are the run's, and {len(claims)} epsilons are not below what it cost")


def kept(traces: Traces) -> Result:
    """Nothing internal in public records or in the bundle; no draw and no noise in a state; no state in the end."""
    name = "whole run, files"
    for record in traces.records:
        foreign = [key for key in record if key not in PUBLIC_RECORD and not key.startswith("test_")]
        if foreign:
            return Result(name, False, f"a public record holds {', '.join(foreign)}")
    bundle = {file.removeprefix("checkpoint/") for file in traces.files if file.startswith("checkpoint/")}
    if bundle != BUNDLE:
        return Result(name, False, f"the bundle holds {', '.join(sorted(bundle ^ BUNDLE))} too many or too few")
    states = [file for file in traces.files if file.startswith("resume/")]
    if states:
        return Result(name, False, f"a finished run keeps {states[0]}")
    foreign = [tensor for tensor in traces.kept if not tensor.startswith(KEPT)]
    if foreign:
        return Result(name, False, f"a resume state holds {', '.join(foreign[:3])}")
    return Result(name, True, f"{len(traces.records)} public records, {len(bundle)} files in the bundle, no state left")
