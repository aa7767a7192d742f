"""What a model was before it was trained: weights taken as public, or another private release, whose promise goes on.

Guarantee: let M1 be the start, (e1, d1)-DP for a unit of its rows, and M2 this training, (e2, d2)-DP for a unit of its
own rows whatever weights it is given. For a unit in both, the pair is (e1 + e2, d1 + d2)-DP (adaptive sequential
composition: Dwork and Roth 2014, theorem 3.16); for one that is in a single one of them, that one's promise holds
(post-processing, parallel composition: McSherry 2009, theorem 4). Whoever does not know whether anybody is in both
takes the sum. The sum of two different units means something only where the start's unit is at least as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.seal import statement_digest

PUBLIC, PRIVATE = "public weights", "private release"
PEOPLE = ("same", "unknown", "other")


@dataclass(frozen=True, kw_only=True)
class Started:
    """Where training started. Public facts only."""

    kind: str
    """``public weights`` or ``private release``."""
    name: str
    """Of the folder of weights, or of the run."""
    sha256: str
    """Of the weights and their description; of the start's statement, signature included."""
    data: str = ""
    """Private release: name of the rows it was trained on."""
    epsilon: float = 0.0
    """Private release: what a unit of those rows bears by it and by all that it started from itself."""
    delta: float = 0.0
    people: str = "unknown"
    """Whether its people are the same as this run's, other, or not known."""
    account: tuple[str, str] | None = None
    """Ledger and account that bore the start, where one did; not in the statement."""

    @property
    def is_private(self) -> bool:
        """Whether its promise has to be carried on."""
        return self.kind == PRIVATE

    def weighed(self, composition: Mapping[str, Any] | None) -> Started:
        """The same start, its people called the same where one account bore both: a ledger is believed before a word.

        Args:
            composition: block of the statement that is to be made; None where no ledger is kept.
        """
        if composition is None or self.account != (composition["ledger_id"], composition["account"]):
            return self
        return replace(self, people="same")

    def together(self, epsilon: float, delta: float) -> tuple[float, float]:
        """(epsilon, delta) that one unit bears at most, with a training of these added."""
        if not self.is_private:
            return epsilon, delta
        if self.people == "other":
            return max(epsilon, self.epsilon), max(delta, self.delta)
        return epsilon + self.epsilon, min(1.0, delta + self.delta)

    def block(self, epsilon: float | None = None, delta: float | None = None) -> dict[str, Any]:
        """The statement's block ``pretraining``.

        Args:
            epsilon, delta: promised by this training; None where it promises nothing.
        """
        made: dict[str, Any] = {"kind": self.kind, "name": self.name, "sha256": self.sha256}
        if not self.is_private:
            return made
        made |= {"data": self.data, "epsilon": self.epsilon, "delta": self.delta, "people": self.people}
        if epsilon is not None and delta is not None:
            both = self.together(epsilon, delta)
            made |= {"epsilon_together": both[0], "delta_together": both[1]}
        return made

    def sentence(self, epsilon: float, delta: float, unit: str) -> str:
        """What is added to the promise in words; epsilons are rounded up. Empty for public weights."""
        if not self.is_private:
            return ""
        text = (
            f" It started from a model ({_up(self.epsilon):g}, {self.delta:g})-differentially private for its own "
            f"training on {self.data}"
        )
        if self.people == "other":
            return f"{text}; by declaration nobody is in both."
        both = self.together(epsilon, delta)
        known = "the same people" if self.people == "same" else "anyone who may be in both"
        return f"{text}: for {known}, both add up to ({_up(both[0]):g}, {both[1]:g}) for one {unit}."


def started_from(statement: Mapping[str, Any]) -> Started | None:
    """What a statement says of its start; None where it says nothing.

    Raises:
        ConfigError: its numbers contradict one another.
    """
    block, guarantee = statement.get("pretraining"), statement.get("guarantee")
    if not isinstance(block, Mapping) or block.get("kind") not in (PUBLIC, PRIVATE):
        return None
    try:
        made = Started(
            kind=str(block["kind"]),
            name=str(block["name"]),
            sha256=str(block["sha256"]),
            data=str(block.get("data", "")),
            epsilon=float(block.get("epsilon", 0.0)),
            delta=float(block.get("delta", 0.0)),
            people=str(block.get("people", "unknown")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("pretraining", "", f"is not complete ({error})", "it does not stand") from error
    if made.people not in PEOPLE or not 0.0 <= made.epsilon < math.inf or not 0.0 <= made.delta <= 1.0:
        raise ConfigError("pretraining", made.people, "is out of bounds", "it does not stand")
    promised = (None, None) if guarantee is None else (guarantee["epsilon"], guarantee["delta"])
    if dict(block) != made.block(*promised):
        raise ConfigError("pretraining", made.name, "does not add up with this training's promise", "it does not stand")
    return made


def start_of(statement: Mapping[str, Any], people: str, *, unit: str, adjacency: str) -> Started:
    """The start that a verified statement makes, for a training on units of this kind.

    Args:
        statement: verified.
        people: same, unknown or other: who is in its rows, measured by those that follow.
        unit, adjacency: of the training that follows.

    Raises:
        ConfigError: it promises nothing about private rows, or about other units, so that nothing could be added up.
    """
    digest, guarantee, before = statement_digest(statement), statement["guarantee"], started_from(statement)
    name = str(statement["identity"]["run_id"])
    if guarantee is None:
        if statement["dataset"]["classification"] != "public":
            problem = "promises no privacy for rows that are not public"
            raise ConfigError("finetune.start", name, problem, "start from a private run, or from public rows")
        if before is not None and before.is_private:
            remedy = "start from that private release itself, or train on with privacy"
            raise ConfigError("finetune.start", name, "went on from a private release without privacy", remedy)
        return Started(kind=PUBLIC, name=name, sha256=digest)
    if people != "other":
        theirs, relation = statement["unit"]["kind"], statement["adjacency"]["relation"]
        if theirs == "record" and unit != "record":
            problem = f"protects one record, and this training one {unit}, who may have had many there"
            remedy = "start from a run with privacy.unit=user, or declare finetune.people=other if that is true"
            raise ConfigError("finetune.start", name, problem, remedy)
        if relation != adjacency:
            problem = f"holds under adjacency {relation}, and this training under {adjacency}"
            raise ConfigError("finetune.start", name, problem, f"set privacy.adjacency={relation}")
    total = (guarantee["epsilon"], guarantee["delta"])
    if before is not None:
        total = before.together(*total)
    bore = statement["composition"]
    data = str(statement["dataset"]["name"]) + (f" and {before.data}" if before is not None and before.data else "")
    return Started(
        kind=PRIVATE,
        name=name,
        sha256=digest,
        data=data[:500],
        epsilon=total[0],
        delta=total[1],
        people=people,
        account=None if bore is None else (bore["ledger_id"], bore["account"]),
    )


def _up(epsilon: float) -> float:
    return math.ceil(epsilon * 1000) / 1000
