"""A whole run that releases its best model: the best by public looks, whatever private rows would say.

Choosing costs nothing as long as it goes by what is public. So public rows are made up whose labels are the other way
round: what private rows call better they call worse. The looks on record are computed again from the releases and the
public rows, and what is released must be the model of the best of them, of whichever attempt; a second run has public
rows of the same kind as private ones, no average, and a metric of which more is better.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace

from dptrain.config import TaskConfig, TrainConfig
from dptrain.config_data import DataConfig
from dptrain.config_tuning import EvaluationConfig, ReleaseConfig
from dptrain.conformance.stand import Result, Stand
from dptrain.conformance.whole_run import NAME, STEPS, Traces, killed_and_resumed, look, misjudged, people, same

CLOSE = 1e-5
"""Of a metric: looks that are nearer to the best than that may be released as well, as float32 rounds."""


@dataclass(frozen=True)
class Kind:
    """One run.

    Attributes:
        turned: whether public labels are the other way round.
        metric: that chooses.
        ema: of the average, which is judged and released; 0: none.
    """

    turned: bool
    metric: str
    ema: float

    def settings(self, config: TrainConfig) -> TrainConfig:
        """Of the run, out of those of the other whole run, whose plan it shares: large steps, and a look at each."""
        return replace(
            config,
            data=DataConfig(name=NAME, options={"turned": self.turned}),
            optimizer=replace(config.optimizer, lr=0.3, schedule="constant", ema=self.ema),
            evaluation=EvaluationConfig(every=1),
            task=TaskConfig(metrics=[self.metric, "accuracy"] if self.metric != "accuracy" else ["accuracy"]),
            release=ReleaseConfig(choose="best"),
        )


KINDS = {
    "labels the other way round": Kind(turned=True, metric="log_loss", ema=0.5),
    "labels of the same kind": Kind(turned=False, metric="accuracy", ema=0.0),
}


def best_released(stand: Stand) -> Result:
    """Exact: recomputed metrics, and weights, of runs that are killed in their fourth step and go on."""
    name = "whole run, best"
    if stand.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        return Result(name, None, "not on a CPU, or no fork here")
    told = list[str]()
    for which, kind in KINDS.items():
        traces = killed_and_resumed(stand, kind.settings)
        if isinstance(traces, str):
            return Result(name, False, f"public {which}: {traces}")
        wrong, says = judged(kind, traces)
        if wrong is not None:
            return Result(name, False, f"public {which}: {wrong}")
        told.append(f"public {which}: {says}")
    return Result(name, True, "; ".join(told))


def judged(kind: Kind, traces: Traces) -> tuple[str | None, str]:
    """What is wrong with the choice, and what was chosen."""
    if found := [*traces.before.wrong, *traces.after.wrong]:
        return "; ".join(found[:2]), ""
    public = people(DataConfig(name=NAME), 0, kind.turned).load().public
    states = {**traces.before.states, **traces.after.states}
    steps = [int(record["step"]) for record in traces.records]
    if sorted(set(steps) & states.keys()) != sorted(steps) or STEPS not in steps:
        return f"looks are on record at steps {steps}, and the run took {sorted(states)}", ""
    values = {step: look(kind.metric, states[step]["mean"], public) for step in steps}
    for record in traces.records:
        if wrong := misjudged(record, f"test_{kind.metric}", values[record["step"]]):
            return wrong, ""
    sign = -1.0 if kind.metric == "log_loss" else 1.0
    known = [step for step in steps if step <= traces.taken_up or step > traces.after.first]
    least = max(sign * values[step][0] - values[step][1] for step in known) - CLOSE
    best = [step for step in known if sign * values[step][0] + values[step][1] >= least]
    of = [step for step in steps if same(states[step]["mean"], traces.weights)]
    if not set(of) & set(best):
        where = f"that of step {of[0]}" if of else "that of no look"
        return f"the model released is {where}; the best by public rows is of step {best[0]} of {known}", ""
    return None, f"the model of step {best[0]} of {len(known)} looks is the best and is released"
