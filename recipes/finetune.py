"""Fine-tune a pretrained model privately: the story of `recipes/train.py` on the defaults of `configs/finetune.yaml`.

dptrain finetune data=sms_spam model=hf model.path=data/models/minilm finetune.train=probe
dptrain finetune data=own data.name=mine model=hf model.path=DIR finetune.train=lora run.purpose=final
dptrain finetune finetune.start=runs/RUN data=csv ...
dptrain finetune resume=runs/RUN
python recipes/finetune.py ...
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded, recipe
from dptrain.config import TrainConfig


def run(config: TrainConfig) -> dict[str, Any]:
    """One fine-tuning run, from settings to a finished folder; see ``recipes/train.py``."""
    return recipe("train").run(config)


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain finetune``."""
    recipe("train").main(arguments, "finetune")


if __name__ == "__main__":
    sys.exit(guarded("finetune", sys.argv[1:]))
