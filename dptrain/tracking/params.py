"""Settings as trackers keep them: one flat name each."""

from __future__ import annotations

from typing import Any


def flat_settings(node: Any, prefix: str = "") -> dict[str, str]:
    """``{"privacy": {"epsilon": 3.0}}`` -> ``{"privacy.epsilon": "3.0"}``; a list is one value.

    >>> flat_settings({"data": {"name": "adult", "classes": ["a", "b"]}, "seed": 0})
    {'data.name': 'adult', 'data.classes': "['a', 'b']", 'seed': '0'}
    """
    if isinstance(node, dict):
        return {k: v for name, inner in node.items() for k, v in flat_settings(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(node)}
