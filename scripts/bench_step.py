"""What a DP step costs beside a plain PyTorch step: time, memory and exactness, dptrain's engines and the peers'.

    python scripts/bench_step.py time  workloads=a,b,c,d,e,f engines=auto,opacus_ghost
    python scripts/bench_step.py mem   workloads=c engines=auto
    python scripts/bench_step.py check workloads=a,e_tied engines=auto,vmap
    python scripts/bench_step.py grow  axis=T engines=auto

    time   DP step / plain step: same model, batch and optimizer, taken by turns (DP, plain, DP, plain, ...) in one
           process with one allocator; median over the pairs, with a 95 % bootstrap interval. A DP step of dptrain is
           what its training loop does: clipped sum, noise, divisor, optimizer. "~" marks an interval wider than 10 %
    mem    most memory of three steps above the built model / the same of plain steps; one process each
    check  distance of the clipped sum from float64 autograd on one row at a time, relative; half of the rows clipped
    grow   ``time`` along one axis: T (sequence), B (batch), width or depth

Settings (KEY=VALUE, any order):
    workloads=a,b,c,d,e,f   which; see below
    engines=auto            engines of dptrain, and peers; ``dptrain:NAME`` where a peer has the same name
    noise=fast              dptrain's noise: fast, secure, or none (peers: none, or their own)
    reps=0                  pairs a cell; 0: 5 to 60, as many as fit in ``seconds``
    seconds=20              see reps
    clock=cpu               cpu (of the process, all threads), thread (the main thread's alone) or wall
    threads=1               threads of torch, on both sides
    unit_rows=1             rows that are one unit together (dptrain only)
    memory_limit=-1         execution.memory_limit in MiB: what an engine may hold for its sum; -1: no limit
    checkpoint=             execution.checkpoint: patterns of modules computed again, by commas (dptrain's bookkeeping)
    parts=1                 physical batches that a step's rows are taken in (dptrain; a plain step takes all)
    rows=32                 check: most rows of a batch that are compared
    axis=T                  grow: T, B, width or depth
    limit=900               seconds after which a cell is given up
    json=FILE               adds one JSON line a cell to FILE

Peers run in an environment of their own where one is named, each with a plain partner in its own process:
    PEER_OPACUS_PYTHON, PEER_FASTDP_PYTHON, PEER_PRIVATE_TRANSFORMERS_PYTHON, PEER_OPAKE_PYTHON   its interpreter
    PEER_FASTDP_PATH, PEER_PRIVATE_TRANSFORMERS_PATH   folder of its source, where it is not installed
docs/results/step_cost.md says how these were made, and holds the results.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, Any] = {
    "workloads": "a,b,c,d,e,f",
    "engines": "auto",
    "noise": "fast",
    "reps": 0,
    "seconds": 20.0,
    "clock": "cpu",
    "threads": 1,
    "unit_rows": 1,
    "memory_limit": -1,
    "checkpoint": "",
    "parts": 1,
    "rows": 32,
    "axis": "T",
    "limit": 900.0,
    "json": "",
}
CHOICES = {
    "noise": ("fast", "secure", "none"),
    "clock": ("cpu", "thread", "wall"),
    "axis": ("T", "B", "width", "depth"),
}
COMMANDS = ("time", "mem", "check", "grow")
NOISY = 0.1


class UsageError(Exception):
    """A command line that asks for what does not exist."""


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its settings, typed as their defaults are."""
    commands = [a for a in arguments if "=" not in a]
    if len(commands) != 1 or commands[0] not in COMMANDS:
        raise UsageError(f"{' '.join(commands) or 'no command'}: name one of {', '.join(COMMANDS)} (--help explains)")
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            continue
        if key not in DEFAULTS:
            raise UsageError(f"{argument}: no such setting; there are {', '.join(DEFAULTS)}")
        try:
            settings[key] = type(DEFAULTS[key])(text)
        except ValueError:
            raise UsageError(f"{argument}: is not a number") from None
        if key in CHOICES and text not in CHOICES[key]:
            raise UsageError(f"{argument}: choose from {', '.join(CHOICES[key])}")
    return commands[0], settings


def peer_of(engine: str) -> str | None:
    """The package that a peer's name belongs to, as the environment variables spell it; None for dptrain's own."""
    from bench.contenders import PEERS

    if engine not in PEERS:
        return None
    return next(
        name for name in ("OPACUS", "FASTDP", "PRIVATE_TRANSFORMERS", "OPAKE") if engine.upper().startswith(name)
    )


def run_apart(order: dict[str, Any]) -> dict[str, Any]:
    """Runs one cell in a fresh process, of the peer's interpreter where one is named, and returns its result."""
    peer = peer_of(order["engine"])
    python = os.environ.get(f"PEER_{peer}_PYTHON", sys.executable) if peer else sys.executable
    threads = str(order["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    source = os.environ.get(f"PEER_{peer}_PATH")
    if source:
        environment["PYTHONPATH"] = source
    command = [python, str(Path(__file__).resolve()), "cell", json.dumps(order)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=order["limit"])
    except subprocess.TimeoutExpired:
        return order | {"failed": f"stopped after {order['limit']:g} s"}
    except OSError as error:
        return order | {"failed": f"{python}: {error.strerror}"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return order | {"failed": f"exit code {done.returncode}: {why[0][:200]}"}


def phrase(cell: dict[str, Any], plain: dict[str, Any] | None = None) -> str:
    """One cell of the table."""
    if "failed" in cell:
        return f"failed: {cell['failed'][:60]}"
    if cell["what"] == "check":
        return f"{cell['error']:.1e}" + (f", misses {len(cell['missing'])} tensors" if cell["missing"] else "")
    if cell["what"] == "mem":
        ratio = f"{cell['peak_mib'] / plain['peak_mib']:.2f}" if plain and "peak_mib" in plain else "?"
        return f"{ratio} ({cell['peak_mib']:.0f} MiB)"
    mark = "~" if cell["high"] - cell["low"] > NOISY * cell["ratio"] else ""
    return f"{mark}{cell['ratio']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def device() -> str:
    """The processor by its own name, and what runs on it."""
    import torch

    name = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def table(command: str, settings: dict[str, Any], columns: list[str]) -> None:
    """Runs every cell and prints the Markdown table; a line a cell goes to stderr as it is done."""
    rows: dict[str, list[str]] = {}
    held: dict[tuple[str, str], dict[str, Any]] = {}
    engines = settings["engines"].split(",")
    if command == "mem":
        engines = ["plain", *(e for e in engines if e != "plain")]
    what = "time" if command == "grow" else command
    for column in columns:
        for engine in engines:
            order = {**settings, "what": what, "workload": column, "engine": engine}
            cell = held[engine, column] = run_apart(order)
            if settings["json"]:
                with open(settings["json"], "a", encoding="utf-8") as file:
                    print(json.dumps(cell), file=file)
            rows.setdefault(engine, []).append(phrase(cell, held.get(("plain", column))))
            print(f"{column} {engine}: {cell.get('failed', rows[engine][-1])}", file=sys.stderr, flush=True)
    used = ("noise", "threads", "unit_rows", "memory_limit", "checkpoint", "parts") + (
        ("clock",) if what == "time" else ()
    )
    print(f"{device()}; " + ", ".join(f"{key}={settings[key]}" for key in used) + "\n")
    print("| " + " | ".join([command if command != "grow" else settings["axis"], *columns]) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for engine, cells in rows.items():
        print("| " + " | ".join([engine, *cells]) + " |")
    if what == "time":
        plain = [[c["plain_ms"] for (_, w), c in held.items() if w == column and "plain_ms" in c] for column in columns]
        print("| plain step, ms | " + " | ".join(f"{min(m):.0f} to {max(m):.0f}" if m else "" for m in plain) + " |")


def explain() -> str:
    """The help text, with every workload and peer by name."""
    from bench.contenders import PEERS
    from bench.further import FURTHER
    from bench.workloads import WORKLOADS

    lines = [__doc__ or "", "Workloads:"]
    lines += [f"    {name:12}{w.what}" for name, w in {**WORKLOADS, **FURTHER}.items()]
    lines += ["\nPeers:", *(f"    {name:22}{what}" for name, what in PEERS.items())]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Prints a table; returns 2 for a command line that makes no sense."""
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(explain())
        return 0
    if arguments[0] == "cell":
        from bench.cell import run_cell

        with contextlib.redirect_stdout(sys.stderr):  # peers print as they please; the result is the only line
            found = run_cell(json.loads(arguments[1]))
        print(json.dumps(found))
        return 0
    try:
        command, settings = parse(arguments)
        columns = settings["workloads"].split(",")
        if command == "grow":
            from bench.workloads import growth

            columns = [f"{settings['axis']}/{name}" for name, _ in growth(settings["axis"])]
        else:
            from bench.further import FURTHER
            from bench.workloads import WORKLOADS

            unknown = [name for name in columns if name not in {**WORKLOADS, **FURTHER}]
            if unknown:
                raise UsageError(f"workloads={unknown[0]}: no such workload; --help lists them")
    except UsageError as error:
        print(f"bench_step: error: {error}", file=sys.stderr)
        return 2
    table(command, settings, columns)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
