"""Continuations of a text by a private language model: the bundle is verified, and drawn from.

dptrain generate run=runs/RUN prompt="are you coming" top_k=40 temperature=0.8 count=3
dptrain generate run=runs/RUN/checkpoint tokenizer=data/models/dialogue_lower
"""

from __future__ import annotations

import re
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_generate import GenerateConfig
from dptrain.launch import launch


def run(config: GenerateConfig) -> dict[str, Any]:
    """Verifies, then draws; returns {"run", "texts", "sentence"}. Texts go to standard output, the promise to stderr.

    Raises:
        ClaimRejected: the bundle does not verify (exit code 4).
        ConfigError: it is no language model, the tokenizer is not its own, the prompt is too long.
    """
    from dptrain.checkpoint.bundle import load_verified
    from dptrain.checkpoint.own_tokenizer import tokenizer_of
    from dptrain.data.prompt import open_prompter
    from dptrain.models.continuation import check_language, continuations

    # 1. What may be said before the bundle is read: which tokenizer.
    prompter = open_prompter(tokenizer_of(config.run, config.tokenizer))

    # 2. The bundle, verified; is it a language model of these tokens?
    bundle = load_verified(config.run, config.key, sealing_key=config.sealing_key)
    model = check_language(bundle.model, config.run, prompter.vocabulary)

    # 3. Tokens, one after the other, and their text.
    rows = continuations(
        model,
        prompter.start(config.prompt),
        ends=prompter.ends,
        tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        count=config.count,
        seed=config.seed,
    )
    texts = [prompter.text(row) for row in rows]
    for text in texts:
        print(text)
    print(bundle.statement["sentence"], file=sys.stderr)
    return {"run": str(bundle.path), "texts": texts, "sentence": bundle.statement["sentence"]}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain generate``."""
    launch("generate", [spelled(word) for word in arguments])


def spelled(word: str) -> str:
    """A prompt in the quotes that Hydra wants, so that commas, blanks and brackets are text.

    >>> spelled("prompt=well, no (yes)")
    "prompt='well, no (yes)'"
    """
    name, _, value = word.partition("=")
    if name != "prompt" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return word
    return "prompt='" + re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", value)).replace("${", "\\${") + "'"


if __name__ == "__main__":
    sys.exit(guarded("generate", sys.argv[1:]))
