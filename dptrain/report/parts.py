"""The pieces that every page is built of: the frame, sections, columns, facts. Every string is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dptrain.report.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MADE_FROM_A_RUN = "Made by dptrain from the files of the run folder."


def page(title: str, body: Sequence[str], made: str = MADE_FROM_A_RUN) -> str:
    """A whole page: no scripts, nothing from outside; ``body`` is markup, ``title`` and ``made`` are plain text."""
    content = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{content}\n<footer>{escape(made)}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A titled section; nothing where the body is empty."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def column(title: str, body: str) -> str:
    """A titled part of a section; nothing where the body is empty."""
    return f"<div><h3>{escape(title)}</h3>{body}</div>" if body else ""


def facts_list(rows: Sequence[tuple[str, str]]) -> str:
    """Label and value, one pair a line."""
    if not rows:
        return ""
    cells = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
    return f'<dl class="facts">{cells}</dl>'


def bullets(entries: Sequence[str]) -> str:
    """A list; nothing where there are no entries."""
    return "<ul>" + "".join(f"<li>{escape(entry)}</li>" for entry in entries) + "</ul>" if entries else ""
