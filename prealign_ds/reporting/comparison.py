"""Runs side by side: one HTML page with their curves, numbers, words and the settings in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from prealign_ds.files import atomic_write
from prealign_ds.reporting.charts import Panel, colour
from prealign_ds.reporting.curves import SECTIONS, Runs, all_names
from prealign_ds.reporting.page import page, table
from prealign_ds.reporting.runs import RunFolder, differing_settings, named_runs
from prealign_ds.reporting.words import WordPairs, embedded_pairs, word_panels

_STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1em; }
figure { margin: 0; padding: .6em .8em; background: var(--card); border-radius: 6px; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .95em; } figure svg { display: block; width: 100%; max-width: 640px; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.2em; padding: .4em 0; margin: 0 0 .4em; list-style: none; }
.legend svg { width: 2em; height: .8em; vertical-align: middle; margin-right: .4em; }
nav a { color: inherit; margin-right: 1em; } td:first-child { white-space: nowrap; }
@media (min-height: 500px) { .runs { position: sticky; top: 0; background: var(--page); z-index: 1; } }
@media print { .runs { position: static; } nav { display: none; } .panels { grid-template-columns: 1fr 1fr; }
  .note { break-inside: avoid; break-after: avoid; } }
"""


def write_comparison(folders: Sequence[Path], output: Path, num_words: int = 100) -> None:
    """Write the page on the runs in ``folders`` to ``output``.

    Args:
        folders: Of runs, finished or not.
        output: The HTML file.
        num_words: Words with a translation that the picture of a run's stage 1 shows; 0 leaves the pictures out.

    Raises:
        ValueError: If a folder is not a run's.
    """
    html = comparison_html(named_runs(folders), num_words)
    with atomic_write(output) as handle:
        handle.write(html)


def comparison_html(runs: Runs, num_words: int = 100) -> str:
    """The page; see :func:`write_comparison`."""
    parts = {"Final numbers": _numbers(runs), "Settings that differ": _settings(runs)}
    parts |= {title: f"<p class='note'>{note}</p>{_panels(draw(runs))}" for title, note, draw in SECTIONS}
    if num_words:
        parts["Words before and after stage 1"] = _words(runs, num_words)
    places = {title: title.lower().replace(" ", "-") for title in parts}
    links = "".join(f"<a href='#{place}'>{title}</a> " for title, place in places.items())
    sections = [
        f"<section id='{places[title]}'><h2>{title}</h2>\n{content}</section>" for title, content in parts.items()
    ]
    legend = _legend([_shown(name, run) for name, run in runs.items()])
    title = f"{len(runs)} runs side by side" if len(runs) > 1 else next(iter(runs))
    return page(title, f"<nav>{links}</nav>\n<div class='runs'>{legend}</div>\n" + "\n".join(sections), _STYLE)


def _legend(names: Sequence[str], first: int = 0) -> str:
    """Names with their colours, from the ``first`` one on."""
    items = [
        f"<li><svg viewBox='0 0 20 8' aria-hidden='true'><path d='M0 4H20' stroke='{colour(first + place)}' "
        f"stroke-width='4'/></svg>{escape(name)}</li>"
        for place, name in enumerate(names)
    ]
    return f"<ul class='legend'>{''.join(items)}</ul>"


def _shown(name: str, run: RunFolder) -> str:
    return name if run.is_finished else f"{name} (unfinished)"


def _panels(found: Sequence[Panel]) -> str:
    if not found:
        return "<p>No run has logged it.</p>"
    return f"<div class='panels'>{''.join(panel.html() for panel in found)}</div>"


def _numbers(runs: Runs) -> str:
    """The table of final numbers, the best of each language in bold."""
    whole = all(run.evaluation.get("perplexity") for run in runs.values())
    found = {
        name: {"perplexity": run.evaluation["perplexity"]} if whole else _last(run.records, "perplexity")
        for name, run in runs.items()
    }
    languages = all_names(record.get("perplexity", {}) for record in found.values())
    heads = ["run", *(f"perplexity, {language}" for language in languages)]
    heads += ["aligned cosine", "LM tokens", "in stage 1", "hours", "tokens/s, stage 1", "tokens/s, stage 2"]
    rows, bold = [], set()
    for column, language in enumerate(languages, 1):
        values = [record.get("perplexity", {}).get(language, math.inf) for record in found.values()]
        if len(values) > 1 and min(values) < math.inf:
            bold |= {(row, column) for row, value in enumerate(values) if value == min(values)}
    for name, run in runs.items():
        values = found[name].get("perplexity", {})
        cosines = run.cosines("cosine", None)
        rows.append(
            [
                _shown(name, run),
                *(_number(values.get(language)) for language in languages),
                f"{np.nanmean(cosines[-1][1]):.3f}" if cosines else "-",
                f"{run.tokens:,}",
                f"{min(run.tokens, run.align_tokens):,}",
                f"{run.seconds / 3600:.3g}",
                *(_number(run.speed(stage)) for stage in ("align", "pretrain")),
            ]
        )
    where = "of the final models, on all held-out text" if whole else "at each run's last evaluation during training"
    tokens = {record.get("tokens") for record in found.values()}
    uneven = "" if whole or len(tokens) == 1 else " The runs have not read the same number of tokens there."
    note = (
        f"Perplexity {where}; the lowest in bold.{uneven} Aligned cosine: the mean over all layers and languages at "
        "the last evaluation. Hours: of all logged steps and what came between them. tokens/s: medians. A dash: not "
        "measured."
    )
    return table(heads, rows, bold) + f"<p class='note'>{note}</p>"


def _last(records: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((record for record in reversed(records) if name in record), {})


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _settings(runs: Runs) -> str:
    if len(runs) == 1:
        return "<p class='note'>One run alone: give several to see in which settings they differ.</p>"
    rows = [[key, *map(_value, values)] for key, values in differing_settings(runs).items()]
    if not rows:
        return "<p class='note'>None: the runs have the same settings, but for their folders.</p>"
    return table(["setting", *runs], rows)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


_WORDS = (
    "Frequent words of the table (dots) and a translation of each (triangles, a line between them), as rows of the "
    "input embedding of length 1. Each picture has axes of its own, fitted to both sides together: only distances "
    "within one picture compare, and the cosines in its title are those of the whole space. The alignment loss draws "
    "all words alike: frequent ones, which language modelling moves most, are often less aligned than the average."
)


def _words(runs: Runs, number: int) -> str:
    found: dict[str, WordPairs] = {}
    reasons = []
    for name, run in runs.items():
        if not run.aligns:
            reasons.append(f"{name}: no stage 1.")
        elif not (run.folder / "align").is_dir():
            reasons.append(f"{name}: stage 1 is not finished.")
        else:
            try:
                found[name] = embedded_pairs(run, number)
            except (ValueError, OSError) as error:
                reasons.append(f"{name}: its words cannot be read again ({error}).")
    languages = sorted({language for pairs in found.values() for language in pairs.languages})
    drawn = [panel for name, pairs in found.items() for panel in word_panels(name, pairs, languages)]
    legend = _legend(languages, first=1) if len(languages) > 1 else ""
    shown = f"{legend}{_panels(drawn)}" if drawn else ""
    return f"<p class='note'>{_WORDS}</p>{shown}<p>{escape(' '.join(reasons))}</p>"
