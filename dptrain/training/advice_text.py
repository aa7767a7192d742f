"""Advice for a reader on a terminal."""

from __future__ import annotations

from typing import Any

HEAD = f"  {'':1} {'batch':>9} {'steps':>7} {'passes':>8} {'sigma':>8} {'sigma/B':>9} {'kept':>6} {'a step':>7}"


def advice_text(found: dict[str, Any]) -> str:
    """The table, the recommendation and what it rests on; see ``advise`` for what is in ``found``."""
    lines = [
        f"advice for {found['model']} ({found['parameters']:,} parameters) on {found['data']}: "
        f"{found['units']:,} {found['unit']}s, epsilon {found['epsilon']:.4g} at delta {found['delta']:g}",
        *([] if found["part"] is None else [f"  {found['part']}"]),
        f"  {_weighed(found)}",
        "",
        HEAD + f" {'noise':>8} {'steps':>7} {'bound':>7} {'gradients':>10} {'time':>8}",
    ]
    for place, row in enumerate(found["rows"]):
        lines.append(_row("*" if place == found["recommended"] else "", row))
    lines.append(_row("=", found["configured"]))
    lines += [
        "  * recommended   = as configured now",
        "  kept: of the signal-to-noise ratio that epsilon allows a whole run; a step: signal over noise, at best",
        f"  bound = noise + steps + {found['sample_term']:.4f}, what {found['units']:,} units leave open anyhow; "
        "in units of distance x clipping norm",
        "",
        f"  {why(found)}",
        "",
        *(f"    {word}" for word in found["overrides"]),
        "",
        *(f"  {note}" for note in notes(found)),
        *_caps(found),
        "  no private row was read, no account was opened, nothing was spent",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _weighed(found: dict[str, Any]) -> str:
    said = f"{found['weighed']} choices weighed up"
    if found["limit_seconds"] is not None:
        said += f", {found['affordable']} of them within {clock(found['limit_seconds'])}"
    return f"{said}; cost {found['pace']['source']}"


def _row(mark: str, row: dict[str, Any]) -> str:
    time = "" if row["seconds"] is None else clock(row["seconds"])
    return (
        f"  {mark:1} {row['expected_batch_size']:>9,.10g} {row['steps']:>7,} {row['passes']:>8.1f} "
        f"{row['noise_multiplier']:>8.4g} {row['effective_noise']:>9.2e} {row['signal_kept']:>6.0%} "
        f"{row['step_signal_to_noise']:>7.2g} {row['noise_term']:>8.4f} {row['steps_term']:>7.4f} {row['bound']:>7.4f} "
        f"{row['gradients']:>10.2e} {time:>8}"
    )


def why(found: dict[str, Any]) -> str:
    """The recommendation and its reason, in one line."""
    row = found["rows"][found["recommended"]]
    lowest = min(one["bound"] for one in found["rows"])
    said = (
        f"recommended: batch {row['expected_batch_size']:,.10g}, {row['steps']:,} steps: the cheapest within "
        f"{found['tolerance']:.0%} of the lowest bound that can be had"
    )
    if found["limit_seconds"] is not None and found["unlimited_bound"] < lowest / (1 + found["tolerance"]):
        return f"{said} in {clock(found['limit_seconds'])}; without the limit it would be {_less(found, lowest)} lower"
    return said


def _less(found: dict[str, Any], lowest: float) -> str:
    return f"{1 - found['unlimited_bound'] / lowest:.0%}"


def notes(found: dict[str, Any]) -> list[str]:
    """What the recommendation rests on, and what it cannot know."""
    row = found["rows"][found["recommended"]]
    said = [
        f"the bound is for smooth convex losses that need {found['fewest_steps']:g} steps without noise "
        "(advice.fewest_steps); a network's best length may be a few times off: docs/plan.md",
    ]
    if any(word.startswith("optimizer.lr=") for word in found["overrides"]):
        said.append("optimizer.lr is yours, moved along by the same bound: no better than the one it starts from")
    else:
        said.append("no rule is known for moving this optimizer's rate: choose optimizer.lr on public rows")
    if found["probe"]:
        said.append("time is that of the head; features of the frozen body are computed once besides")
    if row["step_signal_to_noise"] < 0.01:
        said.append("a step is nearly all noise: train fewer numbers (finetune.train=probe or lora)")
    return said


def _caps(found: dict[str, Any]) -> list[str]:
    if found["caps"] is None:
        return []
    if not found["caps"]:
        return [
            "  what a cap on a user's rows keeps is not public: declare data.unit_rows=[[rows,users],...] to see it",
        ]
    lines = [
        "",
        f"  {'cap':>5} {'rows kept':>10} {'users cut':>10} {'rows a user':>12} {'row gradients':>14} {'time':>8}",
    ]
    for one in found["caps"]:
        time = "" if one["seconds"] is None else clock(one["seconds"])
        lines.append(
            f"  {one['cap']:>5} {one['kept']:>10.0%} {one['users_cut']:>10.0%} {one['rows_a_user']:>12.2f} "
            f"{one['row_gradients']:>14.2e} {time:>8}"
        )
    lines.append("  privacy.max_rows_per_unit changes rows and time, not the noise: a user is clipped as a whole")
    return [*lines, ""]


def clock(seconds: float) -> str:
    """A time in at most eight letters."""
    if seconds < 0.95:
        return f"{seconds:.1g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"
