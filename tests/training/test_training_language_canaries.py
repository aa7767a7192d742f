"""Canaries among texts: rows of random ids are planted beside a language model's, sealed, and judged by an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dptrain.audit.scores import logit_difference, loss_score
from dptrain.cli import run
from dptrain.data.canaries import Canaries, crafted_of
from dptrain.data.source import IGNORED, Rows, Source, SourceInfo, Splits
from dptrain.registry import sources
from dptrain.run_folder import read_json

TOKENS, VOCABULARY = 8, 30


def _info(**more: Any) -> SourceInfo:
    facts = {"name": "c", "task": "language", "input_shape": (TOKENS,), "num_classes": 1, "public_size": 64}
    return SourceInfo(**{**facts, "vocabulary": VOCABULARY, "pad": 0, "is_public": True, **more})


@sources.register("canary_language")
def canary_language(config: Any, seed: int) -> Source:
    def rows(count: int, start: int) -> Rows:
        ids = torch.randint(1, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(start))
        ids[::2, 5:] = 0
        return Rows(ids, (ids[:, 1:] != 0).sum(1))

    return Source(_info(name="canary_language"), lambda: Splits(rows(64, 1), rows(32, 2)))


@pytest.mark.parametrize("kind", ["crafted", "natural"])
def test_a_language_run_is_planted_and_audited(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    shape = "{model_type: gpt2, vocab_size: 30, n_positions: 8, n_embd: 8, n_layer: 1, n_head: 2, eos_token_id: 2}"
    line = [
        *("train", "data=own", "data.name=canary_language", "model=small_gpt2", f"model.options.architecture={shape}"),
        *("privacy.epsilon=null", "privacy.noise_multiplier=2", "privacy.epochs=null", "privacy.steps=3"),
        *("privacy.expected_batch_size=16", "execution.physical_batch_size=16", "evaluation.every=3", "run.dir=r"),
        *("tracking=none", "audit.canaries=40", f"audit.canary_kind={kind}"),
    ]
    assert run(line) == 0 and run(["audit", "run=r"]) == 0
    checked = read_json(Path("r", "internal", "audit.json"))["claim_check"]
    assert checked["canaries"]["count"] == 40 and checked["rejected"] is False and len(checked["bounds"]) > 1


def test_crafted_texts_are_full_rows_of_the_vocabulary_without_padding() -> None:
    """20,000 ids: each of 29 is met within 5 sigma of its share (false alarm under 3e-5), the padding never."""
    canaries = Canaries("crafted", bytes(32), np.ones(2500, dtype=bool))
    made = crafted_of(canaries, _info(pad=7))
    counts = torch.bincount(made.inputs.flatten(), minlength=VOCABULARY)
    assert counts[7] == 0 and len(counts) == VOCABULARY
    expected = made.inputs.numel() / (VOCABULARY - 1)
    assert (counts[torch.arange(VOCABULARY) != 7] - expected).abs().max() < 5 * expected**0.5
    assert made.targets.eq(TOKENS - 1).all() and torch.equal(made.inputs, crafted_of(canaries, _info(pad=7)).inputs)
    classes = crafted_of(canaries, _info(task="multiclass", num_classes=3))
    assert sorted(set(classes.targets.tolist())) == [0, 1, 2]


def test_scores_of_tokens_are_means_over_those_that_count() -> None:
    outputs = np.log(np.array([[0.5, 0.5, 0.25, 0.75], [0.1, 0.9, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]))
    tags = np.array([[0, 1], [1, IGNORED], [IGNORED, IGNORED]])
    expected = [(np.log(0.5) + np.log(0.75)) / 2, np.log(0.9), 0.0]
    assert np.allclose(loss_score(outputs, tags, "token_classification"), expected)
    said = logit_difference(np.array([[2.0], [np.nan]]), np.array([3, 0]), "language")
    assert said.tolist() == [-2.0, -np.inf]
    with pytest.raises(ValueError, match="do not fit"):
        loss_score(outputs, tags[:, 0], "token_classification")
    with pytest.raises(ValueError, match="do not fit"):
        loss_score(outputs, tags[:, 0], "language")
