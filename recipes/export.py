"""A verified bundle in the form that other programs load, with its statement inside.

dptrain export run=runs/RUN to=hf into=exported tokenizer=data/models/minilm
dptrain export run=runs/RUN to=hf adapter=kept into=adapter
dptrain export run=runs/RUN to=safetensors into=weights
dptrain export run=runs/RUN to=mlflow into=model
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dptrain.cli import guarded
from dptrain.config_export import ExportConfig
from dptrain.launch import launch


def run(config: ExportConfig) -> dict[str, Any]:
    """Verifies, then writes; returns {"into", "to", "files", "sentence"}.

    Raises:
        ClaimRejected: the bundle does not verify (exit code 4); nothing was written.
        ConfigError: the model has no such form, or ``into`` holds files.
    """
    from dptrain.checkpoint.bundle import load_verified
    from dptrain.checkpoint.export import check_export, export
    from dptrain.tracking.console import summary

    into = Path(config.into).expanduser().absolute()
    check_export(config, into)
    bundle = load_verified(config.run, config.key, sealing_key=config.sealing_key)
    written = export(bundle, config, into)
    summary(
        [
            ("exported", f"{bundle.spec.name} as {config.to}, {len(written)} files"),
            ("into", str(into)),
            ("privacy", bundle.statement["sentence"]),
        ]
    )
    return {"into": str(into), "to": config.to, "files": written, "sentence": bundle.statement["sentence"]}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain export``."""
    launch("export", arguments)


if __name__ == "__main__":
    sys.exit(guarded("export", sys.argv[1:]))
