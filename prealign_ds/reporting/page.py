"""Pages that need nothing else: one HTML file with its style and its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #20242a; --soft: #5c6570; --line: #d5dae0; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e3e6ea; --soft: #a2abb5; --line: #383f47; --card: #1c2026; } }
@media print { :root { --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #fff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1120px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2em 0 .4em; break-after: avoid; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1em; overflow-wrap: normal; }
th, td { padding: .3em .6em; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom-color: var(--soft); }
.scroll { overflow-x: auto; } .note { color: var(--soft); } pre { white-space: pre-wrap; }
img, svg { max-width: 100%; height: auto; } img { background: #fff; border-radius: 4px; }
@media print { .scroll { overflow: visible; } table { font-size: .8em; } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """An HTML page; ``title`` is text, ``body`` HTML, and ``style`` comes after the common one."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[tuple[int, int]] = ()) -> str:
    """A table of texts that scrolls by itself where the window is narrow.

    Args:
        heads: Above the columns.
        rows: The cells.
        bold: Places (row, column) of cells to stress.
    """
    lines = []
    for row, cells in enumerate(rows):
        texts = [escape(cell) for cell in cells]
        shown = [f"<b>{text}</b>" if (row, column) in bold else text for column, text in enumerate(texts)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(lines)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def png_image(picture: bytes, alt: str) -> str:
    """A PNG picture inside the page; ``alt`` says what it shows."""
    return f"<img alt='{escape(alt)}' src='data:image/png;base64,{base64.b64encode(picture).decode()}'>"
