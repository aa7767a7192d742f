"""How every figure is drawn: colours, sizes, and SVG text that a page can hold without asking anything outside."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette: distinct with every common kind of colour vision.
BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#5f6b76"
LINES: list[tuple[str, Any]] = [
    (VERMILION, "-"),
    (PURPLE, "--"),
    (GREEN, "-."),
    (GREY, ":"),
    ("#E69F00", (0, (6, 1.5))),
]
"""Attacks, one after another, as many as are drawn; blue is the promise's."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dptrain",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#1b2733",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#1b2733",
    "ytick.labelcolor": "#1b2733",
    "grid.color": "#e3e8ec",
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
WIDTH = 5.2  # inches; the page scales the figure, and this keeps its text legible from 360 to 560 pixels
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def svg_text(name: str, figure: Figure, title: str) -> str:
    """The figure's SVG element alone, its ids made unique to the figure, with a title for screen readers."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Names may be in any script; text stays text, and the reader's browser has the glyph.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", text)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the page gives the size, the view box the shape
    return f'{head} role="img" aria-label="{escape(title)}">{body.strip()}'
