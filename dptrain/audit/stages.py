"""The stages of an audit, in the order in which a recipe tells them. See ``recipes/audit.py``.

Everything here is computed from members and stays in the internal tier.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dptrain.audit.attack import run_attacks, seconds_tier
from dptrain.audit.claim_check import Planted, check_claim, planted
from dptrain.audit.groups import check_groups, make_groupings
from dptrain.audit.noted import note, noted_line
from dptrain.audit.reference_attacks import ATTACKS
from dptrain.audit.reference_lines import reference_lines
from dptrain.audit.run_config import check_model, check_recipe, read_run_config
from dptrain.audit.signals import check_task
from dptrain.audit.tier import MakeTrainer, make_pool, reference_tier
from dptrain.audit.verdict import verdict
from dptrain.checkpoint.bundle import Bundle, load_verified
from dptrain.config import AuditConfig, TrainConfig
from dptrain.data.manifest import manifest_digest
from dptrain.data.quarantine import NamedRows, refuse_quarantined
from dptrain.data.source import Rows, SourceInfo
from dptrain.data.units import hold_out, load_capped
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.registry import load_user_files, sources
from dptrain.run_folder import CACHE, RunFolder, open_run, read_json, write_json
from dptrain.tracking.attach import log_internal
from dptrain.tracking.console import summary

SCHEMA = "dptrain.audit/1"


@dataclass(frozen=True)
class Subject:
    """What is attacked: a verified bundle, the rows it was trained on, and held-out rows."""

    folder: RunFolder
    bundle: Bundle
    members: Rows
    non_members: Rows
    batch_size: int
    settings: TrainConfig
    """The run's own."""
    info: SourceInfo
    """Public facts about the rows."""
    pool: tuple[Rows, Rows]
    """All members and all non-members, of which the above are a sample."""
    planted: Planted | None = None
    """Canaries; None where the statement names none."""


def open_subject(config: AuditConfig) -> Subject:
    """Loads a finished run's bundle and the data that its own config names.

    Raises:
        ConfigError: the run did not finish, its bundle was changed, or the rows are not those it was trained on.
    """
    folder = open_run(config.run)
    _check_room(folder)
    status = read_json(folder.result).get("status")
    if status == "failed":
        raise ConfigError("run", config.run, "ended with an error and left no checkpoint", "audit a finished run")
    settings = read_run_config(folder)
    if settings.imports and not config.imports:
        raise ConfigError(
            "imports",
            [],
            f"the run used files of its user's ({', '.join(settings.imports)}), and a run folder cannot name code",
            "give imports=[...] yourself",
        )
    load_user_files(config.imports)
    bundle = load_verified(folder.checkpoint, config.key, sealing_key=config.audit.key)
    _check_run(folder, bundle)
    source = sources.build(settings.data.name, settings.data, settings.seed, options=settings.data.options)
    check_groups(source.info, config.audit.groups)
    splits = load_capped(source, settings.privacy, settings.seed)
    _check_rows(folder, splits.train)
    refuse_quarantined(NamedRows(splits.train), source.info.name)
    trained, _ = hold_out(splits.train, settings.evaluation, settings.seed)
    found = planted(bundle.statement, folder.internal, config.audit.key, folder.run_id, trained, source.info)
    trained = trained if found is None else found.members
    return Subject(
        folder=folder,
        bundle=bundle,
        members=_some_units(trained, config.audit.max_rows, config.seed),
        non_members=_some_units(splits.public, config.audit.max_rows, config.seed),
        batch_size=settings.evaluation.batch_size,
        settings=settings,
        info=source.info,
        pool=(trained, splits.public),
        planted=found,
    )


def _check_room(folder: RunFolder) -> None:
    """What is found comes from members, and stays in this folder: a link would carry it to where the folder says."""
    for place in (folder.internal, folder.internal / "references"):
        if place.is_symlink():
            raise ConfigError("run", place, "is a link: findings would leave the run's folder", "put a folder there")


def _check_run(folder: RunFolder, bundle: Bundle) -> None:
    """What is found is filed under the folder's run, so the bundle must be that run's."""
    own = bundle.statement["identity"]["run_id"]
    if own != folder.run_id:
        problem = f"holds the checkpoint of run {own}, and its result.json is of run {folder.run_id}"
        raise ConfigError("run", folder.path, problem, "give a run folder as its run left it")


def _check_rows(folder: RunFolder, members: Rows) -> None:
    manifest = read_json(folder.internal_manifest)
    try:
        salt, digest = bytes.fromhex(manifest["salt"]), str(manifest["digest"])
        if not 16 <= len(salt) <= 64:
            raise ValueError("a salt of another length")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("run", folder.internal_manifest, "is damaged", "restore it from a copy") from error
    if manifest_digest(members, salt) != digest:
        raise ConfigError(
            "data", folder.path, "the rows are not those that this run was trained on", "give the data as it was"
        )


def _some_units(rows: Rows, most: int, seed: int) -> Rows:
    """All rows of at most ``most`` units, drawn by seed."""
    if rows.num_units <= most:
        return rows
    chosen = torch.randperm(rows.num_units, generator=torch.Generator().manual_seed(seed))[:most]
    kept = torch.zeros(rows.num_units, dtype=torch.bool).index_fill_(0, chosen, True)
    return rows.take(torch.nonzero(kept[rows.unit_id]).flatten())


def tell_ledger(subject: Subject, config: AuditConfig) -> dict[str, Any]:
    """Writes to the ledger, before a score is computed, that this checkpoint is attacked and with what; costs nothing.

    Raises:
        ConfigError: ``ledger_uri`` is not the ledger that counted the run.
        LedgerBroken: the ledger contradicts itself (exit code 3).
    """
    attacks = seconds_tier(subject.bundle.spec.task, subject.non_members.num_units)
    attacks += [*(ATTACKS if config.audit.budget else ()), *(["canaries"] if subject.planted else [])]
    statement, of_run = subject.bundle.statement, subject.settings.ledger.uri
    return note(statement, subject.folder.run_id, config.ledger_uri, of_run, attacks)


def references(subject: Subject, config: AuditConfig, make_trainer: MakeTrainer) -> dict[str, Any] | None:
    """Attacks with reference models, trained while ``audit.budget`` lasts; None where no time is given.

    Args:
        subject: what is attacked.
        config: of the audit.
        make_trainer: gives the trainer of references for a run's config and a pool of rows.
    """
    if config.audit.budget is None:
        return None
    check_task(subject.bundle.spec.task)
    wanted = check_groups(subject.info, config.audit.groups)
    pool = make_pool(*subject.pool, config.audit.max_rows, config.seed)
    groupings = make_groupings(pool.scored_members(), subject.info, wanted)
    bundle, size = subject.bundle, subject.batch_size
    check_model(subject.settings, bundle.spec, subject.folder)
    trainer = make_trainer(_for_references(subject.settings, pool.rows), pool.rows)
    check_recipe(trainer.plan, trainer.spec, bundle.statement, bundle.spec, subject.folder)
    beside = len(seconds_tier(bundle.spec.task, subject.non_members.num_units))

    def tell(line: str) -> None:
        print(f"dptrain: {line}", file=sys.stderr)

    given, seed = config.audit, config.seed
    return reference_tier(subject.folder, bundle, pool, trainer, given, seed, size, beside, groupings, tell)


def _for_references(settings: TrainConfig, rows: Rows) -> TrainConfig:
    """The run's own settings, without code (what the user named is loaded, and a run folder names none), and with a
    physical batch no larger than the pool."""
    size = min(settings.execution.physical_batch_size, max(len(rows), settings.privacy.max_rows_per_unit))
    return replace(settings, imports=[], execution=replace(settings.execution, physical_batch_size=size))


def attack(
    subject: Subject, config: AuditConfig, noted: dict[str, Any], tier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Scores members and non-members and says what they tell apart; the content of internal/audit.json.

    Args:
        subject: what is attacked.
        config: of the audit.
        noted: of ``tell_ledger``.
        tier: of ``references``: its attacks stand beside the others and share their error.
    """
    start = time.monotonic()
    statement = subject.bundle.statement
    guarantee = statement.get("guarantee") or {}
    members, others = subject.members, subject.non_members
    found = run_attacks(
        _outputs(subject, members),
        members.targets.numpy(),
        members.unit_id.numpy(),
        _outputs(subject, others),
        others.targets.numpy(),
        others.unit_id.numpy(),
        subject.bundle.spec.task,
        config.audit.fpr,
        config.audit.confidence,
        beside=len(ATTACKS) if tier else 0,
    )
    found["attacks"] += tier["attacks"] if tier else []
    claim = {"epsilon_claimed": guarantee.get("epsilon"), "delta": guarantee.get("delta")}
    unit = str(statement["unit"]["kind"])
    judged = verdict(found, claim["epsilon_claimed"], claim["delta"], config.audit.confidence, unit)

    def outputs(rows: Rows) -> Any:
        return _outputs(subject, rows, cache=None)

    task, settings = subject.bundle.spec.task, config.audit
    checked = check_claim(subject.planted, outputs, statement, task, settings.level, settings.confidence)
    judged["claim_check"] = checked
    if checked["rejected"]:
        judged |= {"rejected": True, "verdict": checked["sentence"]}
    head = {"schema": SCHEMA, "run_id": subject.folder.run_id, "seed": config.seed, "unit": unit}
    head |= {"ledger": noted, "references": tier["references"] if tier else None}
    return head | claim | found | judged | {"seconds": round(time.monotonic() - start, 2), "objective": None}


def _outputs(subject: Subject, rows: Rows, cache: Path | None = CACHE) -> Any:
    return subject.bundle.outputs(rows.inputs, subject.batch_size, cache).numpy()


def keep(subject: Subject, findings: dict[str, Any], server: str | None) -> None:
    """Writes internal/audit.json and copies it to the internal MLflow experiment."""
    stored = {key: value for key, value in findings.items() if key != "objective"}
    write_json(subject.folder.internal_audit, stored)
    log_internal(subject.folder, _numbers(findings), [subject.folder.internal_audit], str(findings["verdict"]), server)


def _numbers(findings: dict[str, Any]) -> dict[str, float]:
    """Metrics of the internal experiment: AUC and TPR of every attack, epsilon shown and claimed, p-value."""
    found: dict[str, Any] = {}
    for attack in findings["attacks"]:
        found[f"auc_{attack['name']}"] = attack["auc"]["value"]
        found |= {f"tpr_{a['fpr']:g}_{attack['name']}": a["tpr"] for a in attack["tpr"] if "refused" not in a}
    checked = findings["claim_check"]
    found |= {name: findings[name] for name in ("epsilon_claimed", "epsilon_low", "epsilon_ceiling")}
    found |= {"epsilon_low_canaries": checked.get("epsilon_low"), "p_value": (checked.get("test") or {}).get("p_value")}
    return {name: float(value) for name, value in found.items() if value is not None}


def say(subject: Subject, findings: dict[str, Any]) -> None:
    """What was found, in a few lines."""
    unit = f"{findings['unit']}s"
    lines = [("members", f"{findings['members']:,} {unit} against {findings['non_members']:,} held out")]
    for found in findings["attacks"]:
        auc = found["auc"]
        lines.append(
            (found["name"].replace("_", " "), f"AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})")
        )
        for rate in found["tpr"]:
            shown = rate.get("refused") or f"{rate['tpr']:.2%} ({rate['low']:.2%} to {rate['high']:.2%})"
            lines.append(("", f"members found at {100 * rate['fpr']:g} % false alarms: {shown}"))
    lines += reference_lines(findings["references"])
    lines.append(("ledger", noted_line(findings["ledger"])))
    lines.append(("canaries", str(findings["claim_check"]["sentence"])))
    lines += [("verdict", str(findings["verdict"])), ("kept in", f"{subject.folder.internal_audit} (internal tier)")]
    summary(lines)


def judge(subject: Subject, findings: dict[str, Any]) -> None:
    """Raises ClaimRejected (exit code 4) where the attack contradicts the statement."""
    if findings.get("rejected"):
        raise ClaimRejected(
            "run",
            subject.folder.run_id,
            f"the attack contradicts the claimed epsilon {findings['epsilon_claimed']}",
            "do not release this checkpoint",
        )
