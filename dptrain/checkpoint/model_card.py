"""What travels with exported weights: a model card with the promise, and the statement in the weights' metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from dptrain.privacy.seal import statement_digest
from dptrain.run_folder import write_json, write_text
from dptrain.signing import canonical


def metadata(statement: dict[str, Any]) -> dict[str, str]:
    """The statement for the header of a safetensors file, where values are text."""
    guarantee = statement["guarantee"]
    made = {
        "format": "pt",
        "dptrain.sentence": statement["sentence"],
        "dptrain.statement": canonical(statement).decode(),
        "dptrain.statement.sha256": statement_digest(statement),
    }
    if guarantee is not None:
        made |= {"dptrain.epsilon": repr(guarantee["epsilon"]), "dptrain.delta": repr(guarantee["delta"])}
    return made


def put_statement(folder: Path, statement: dict[str, Any], use: str, extra: dict[str, str] | None = None) -> None:
    """Writes statement.json and README.md into ``folder``, and the statement into every safetensors file there.

    Args:
        use: how the folder is loaded, for the card.
        extra: further metadata of the weights.
    """
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            held = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        save_file(tensors, file, metadata={**held, **metadata(statement), **(extra or {})})
    write_json(folder / "statement.json", statement)
    write_text(folder / "README.md", card(statement, use))


def card(statement: dict[str, Any], use: str) -> str:
    """A model card in Markdown: the sentence, the numbers, what they leave open, how to check them."""
    guarantee, unit = statement["guarantee"], statement["unit"]
    rows = [("data", statement["dataset"]["name"]), ("unit", unit["kind"])]
    if guarantee is not None:
        rows += [
            ("epsilon", f"{guarantee['epsilon']:.4f}"),
            ("delta", f"{guarantee['delta']:g}"),
            ("adjacency", statement["adjacency"]["meaning"]),
            ("noise multiplier", f"{statement['mechanism']['noise_multiplier']:g}"),
            ("steps", str(statement["sampling"]["steps_done"])),
        ]
    start = statement["pretraining"]
    if start:
        rows.append(("started from", f"{start['name']} ({start['kind']})"))
        if "epsilon_together" in start:
            rows.append(("together", f"({start['epsilon_together']:.4f}, {start['delta_together']:g})"))
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    open_points = "\n".join(f"- {line}" for line in statement["limits"]["not_covered"])
    front = "---\nlibrary_name: transformers\ntags:\n- differential-privacy\n- dptrain\n---\n"
    return (
        f"{front}\n# Trained with differential privacy\n\n{statement['sentence']}\n\n| | |\n|---|---|\n{table}\n\n"
        f"Not covered:\n\n{open_points}\n\n"
        "`statement.json` is signed; `dptrain verify path=statement.json` recomputes its numbers. The digests of\n"
        "weights in it are those of the release bundle that this folder was made from, in another form.\n\n"
        f"## Use\n\n```python\n{use.strip()}\n```\n"
    )


def _cell(value: Any) -> str:
    return json.dumps(value)[1:-1].replace("|", "\\|") if isinstance(value, str) else str(value)
