"""Layer rules, cut rows, many parameters and private looks: honest parts pass, a planted fault is named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain.conformance import layers as module
from dptrain.conformance.layers import layers, of_kind
from dptrain.conformance.lengths import token_lengths
from dptrain.conformance.looks import private_looks
from dptrain.conformance.stand import Stand
from dptrain.conformance.wide import wide
from dptrain.conformance.zoo import KINDS
from dptrain.data import units
from dptrain.errors import ConfigError
from dptrain.gradients import draw_sum
from dptrain.gradients.bookkeeping import convolution, recurrent
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.noise.secure import SecureNoise
from dptrain.training import assemble, private_metrics


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_rule_is_right_in_every_way(name: str, stand: Stand) -> None:
    wrong, asked = of_kind(stand, KINDS[name])
    assert wrong is None and asked >= 2


@pytest.mark.parametrize("engine", ["vmap", "opacus_hooks", "opacus_ghost", "loop"])
def test_other_engines_are_right_or_decline(engine: str, stands: Callable[..., Stand]) -> None:
    (found,) = layers(stands(f"clipping.engine={engine}"))
    assert found.passed and ("declined" in found.says) == (engine != "loop")


def test_float64_is_asked_more_finely(stands: Callable[..., Stand]) -> None:
    for name in ("few tokens", "LSTM"):
        assert of_kind(stands("execution.dtype=float64"), KINDS[name])[0] is None


def test_a_rule_that_is_wrong_in_one_way_alone_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that a clock would seldom take: Gram norms of tokens, 1 % low."""
    from dptrain.gradients.bookkeeping import seen

    original = seen.gram_norm

    def low(*given: Any, **named: Any) -> Any:
        total, loud = original(*given, **named)
        return 0.98 * total, loud

    monkeypatch.setattr(seen, "gram_norm", low)
    wrong, _ = of_kind(stand, KINDS["few tokens"])
    assert wrong is not None and "below the true one" in wrong


@pytest.mark.parametrize("name", ["convolution_loops.per_unit_gradients", "convolution_gram.picture_norms"])
def test_a_compiled_loop_that_is_wrong_is_found(name: str, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="needs the extra 'fast'")
    part, _, function = name.partition(".")
    loops = importlib.import_module(f"dptrain.gradients.bookkeeping.{part}")
    original = getattr(loops, function)

    def short(*arguments: Any) -> Any:
        found = original(*arguments)
        return (0.998 * found[0], *found[1:]) if isinstance(found, tuple) else 0.999 * found

    monkeypatch.setattr(loops, function, short)
    wrong, _ = of_kind(stand, KINDS["wide pictures"])
    assert wrong is not None


def test_an_engine_that_falls_over_is_named_and_others_are_asked(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("sizes must match")

    monkeypatch.setattr(recurrent._Layer, "enter", broken)
    (found,) = layers(stand)
    assert found.passed is False and "LSTM: ends in RuntimeError: sizes must match" in found.says
    assert "pictures" not in found.says


def test_a_model_that_is_declined_is_no_failure(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def declined(*_: Any, **__: Any) -> Any:
        raise ConfigError("clipping.engine", "x", "has no rule for it", "choose another")

    monkeypatch.setattr(module, "build_engine", declined)
    (found,) = layers(stand)
    assert found.passed is None


def test_a_batch_that_is_too_large_for_one_piece_is_looked_at(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BookkeepingEngine.clipped_parts

    def forgetful(self: Any, batch: Any) -> Any:
        parts, stats = original(self, batch)
        return ([0.99 * part for part in parts] if len(batch.weight) > 512 else parts), stats

    monkeypatch.setattr(BookkeepingEngine, "clipped_parts", forgetful)
    wrong, _ = of_kind(stand, KINDS["repeated tokens"])
    assert wrong is not None and "units at once" in wrong
    assert of_kind(stand, KINDS["tied table"])[0] is None
    assert convolution.MOST_GRAM_PLACES > 64  # of the pictures here: both sides of it are asked by turns


def test_rows_that_are_cut_too_short_are_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_lengths(stand).passed
    original = assemble.unit_lengths

    def short(ids: Tensor, index: Any, pad: int, buckets: Any) -> Tensor:
        return original(ids[:, :-1], index, pad, buckets).clamp(max=64)

    monkeypatch.setattr(assemble, "unit_lengths", short)
    assert token_lengths(stand).passed is False


def test_wide_noise_and_releases_pass(stand: Stand, stands: Callable[..., Stand]) -> None:
    """False alarms: 1e-7 of the laws, 1e-7 of values that come twice."""
    for one in (stand, stands("privacy.noise=fast")):
        assert [found.check for found in wide(one) if found.passed is not True] == []


def test_the_last_entry_of_a_piece_without_noise_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = draw_sum._release

    def release(source: Tensor, grad: Tensor, blocks: Any, scale: float, on_grid: bool, compiled: bool = False) -> None:
        kept = source[-1].clone()
        original(source, grad, blocks, scale, on_grid, compiled)
        if len(grad) > 33_000:
            grad[32_767] = kept.round() * scale

    monkeypatch.setattr(draw_sum, "_release", release)
    assert {found.check for found in wide(stand) if found.passed is False} == {"wide release"}


def test_pieces_that_are_balanced_are_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        for piece in original(self, step, count):
            yield (piece - piece.mean()).round()

    monkeypatch.setattr(SecureNoise, "pieces", pieces)
    assert "noise, wide" in {found.check for found in wide(stand) if found.passed is False}


def test_private_looks_pass() -> None:
    """False alarms: 1e-7."""
    assert private_looks().passed


def _quiet(self: Any, module: Any) -> float:
    return _LOOK(self, module) * 0.9


def _all_rows(right: np.ndarray, units: np.ndarray, rows_of: np.ndarray) -> np.ndarray:
    return np.bincount(units, weights=right, minlength=len(rows_of)).astype(np.int64) * private_metrics.GRID


def _kept(rows: Any, evaluation: Any, seed: int) -> Any:
    return rows, _HOLD(rows, evaluation, seed)[1]


_LOOK, _HOLD = private_metrics.PrivateAccuracy.look, units.hold_out


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (private_metrics.PrivateAccuracy, "look", _quiet),
        (private_metrics, "unit_shares", _all_rows),
        ("dptrain.conformance.looks", "hold_out", _kept),
    ],
    ids=["scaled", "a row counts one", "held out and trained on"],
)
def test_wrong_looks_are_found(owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(owner, str):
        import dptrain.conformance.looks as owner
    monkeypatch.setattr(owner, name, value)
    assert private_looks().passed is False


def test_a_look_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(self: Any, module: torch.nn.Module) -> float:
        self._planned += 1
        return _LOOK(self, module)

    monkeypatch.setattr(private_metrics.PrivateAccuracy, "look", endless)
    found = private_looks()
    assert found.passed is False and "is not refused" in found.says
