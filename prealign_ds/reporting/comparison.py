"""Runs side by side: one HTML page with their curves, numbers, words and the settings in which they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prealign_ds.files import atomic_write
from prealign_ds.reporting.charts import Line, Look, Panel, colour, line_panel, short_number, smooth, svg_panel, thin
from prealign_ds.reporting.page import page, table
from prealign_ds.reporting.runs import Points, RunFolder, differing_settings, named_runs
from prealign_ds.reporting.words import WordPairs, embedded_pairs, word_panels

Runs = Mapping[str, RunFolder]
_PAIRS: tuple[tuple[str, Look], ...] = (("cosine", "marked"), ("random", "dashed"))
_BATCH_PAIRS: tuple[tuple[str, Look], ...] = (("aligned_cosine", "plain"), ("random_cosine", "dashed"))
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
    charts: list[tuple[str, str, Callable[[Runs], list[Panel]]]] = [
        ("Losses", _LOSSES, _losses),
        ("Perplexity of held-out text", _PERPLEXITY, _perplexities),
        ("Alignment by layer", _LAYERS, _by_layer),
        ("Alignment during training", _TRAINING, _over_training),
        ("Alignment by layer during training", _HEAT, _heat_maps),
        ("Code-switching", _SWITCHES, _switches),
        ("Speed", _SPEED, _speed),
    ]
    parts = {"Final numbers": _numbers(runs), "Settings that differ": _settings(runs)}
    parts |= {title: f"<p class='note'>{note}</p>{_panels(draw(runs))}" for title, note, draw in charts}
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


_LOSSES = (
    "Cross-entropy of the training text in both stages, in nats a token, and the sum of stage 1's alignment losses "
    "over all layers. Faint: as logged; strong: the mean of each point's neighbourhood. Dotted upright lines: the end "
    "of stage 1. The losses of code-switched and of plain text are not the same measure: compare perplexities."
)


def _losses(runs: Runs) -> list[Panel]:
    curves = {name: [run.curve("loss", stage) for stage in run.settings.stages] for name, run in runs.items()}
    alignment = {name: [run.curve("alignment_loss", "align")] for name, run in runs.items()}
    marks, middle = _ends_of_alignment(runs), max(run.tokens for run in runs.values()) / 2
    late = [mark for mark in marks if mark[0] >= middle]
    return _some(
        line_panel("LM loss", _raw_and_smooth(curves), "nats a token", marks=marks),
        line_panel("LM loss, second half", _raw_and_smooth(curves, middle), "nats a token", marks=late),
        line_panel("Alignment loss of stage 1", _raw_and_smooth(alignment), "sum over layers"),
    )


def _raw_and_smooth(curves: Mapping[str, Sequence[Points]], begin: float = 0) -> list[Line]:
    """Of each run, the curves of its stages from ``begin`` on: faint as they are, and smooth."""
    faint, strong = [], []
    for place, (name, stages) in enumerate(curves.items()):
        for points in stages:
            raw, means = ([point for point in some if point[0] >= begin] for some in (points, smooth(points)))
            strong.append(Line(name, place, thin(means)))
            if len(points) >= 25:
                faint.append(Line(name, place, thin(raw), "faint"))
    return faint + strong


def _ends_of_alignment(runs: Runs) -> list[tuple[float, int | None]]:
    """Where stage 1 ends, with the place of the run's colour where it is not the same in all."""
    ends = {
        place: run.align_tokens
        for place, run in enumerate(runs.values())
        if run.aligns and "pretrain" in run.settings.stages and run.tokens > run.align_tokens
    }
    if len(set(ends.values())) == 1:
        return [(next(iter(ends.values())), None)]
    return [(tokens, place) for place, tokens in ends.items()]


def _some(*found: Panel | None) -> list[Panel]:
    return [panel for panel in found if panel is not None]


def _all(names: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, in the order in which they come first."""
    return list(dict.fromkeys(name for some in names for name in some))


_PERPLEXITY = "Measured during training on the held-out text; lower is better. The upward axis is logarithmic."


def _perplexities(runs: Runs) -> list[Panel]:
    found = {name: run.perplexities() for name, run in runs.items()}
    return _some(
        *(
            line_panel(
                language,
                [
                    Line(name, place, [(x, y) for x, y in series.get(language, [])], "marked")
                    for place, (name, series) in enumerate(found.items())
                ],
                "perplexity",
                scale="log",
                marks=_ends_of_alignment(runs),
            )
            for language in _all(found.values())
        )
    )


_LAYERS = (
    "Mean cosine of words with their translations (solid) and with other words' translations (dashed) at the last "
    "evaluation. emb: input embedding; head: output embedding. Where both lines are high, a high cosine says nothing."
)


def _by_layer(runs: Runs) -> list[Panel]:
    found = []
    for language, split in _measured(runs):
        lines = []
        for place, (name, run) in enumerate(runs.items()):
            for kind, look in _PAIRS:
                if series := run.cosines(kind, language, split):
                    lines.append(Line(name, place, list(enumerate(series[-1][1])), look))
        found.append(
            line_panel(_titled(language, split), lines, "cosine", "layer", limits=(None, 1.05), settle=_layers)
        )
    return _some(*found)


def _layers(panel: Axes) -> None:
    """Name the layers 0 .. L+1 below a panel."""
    last = max(int(max(np.atleast_1d(line.get_xdata()))) for line in panel.lines)
    panel.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    panel.set_xticks(sorted({0, last, *(tick for tick in range(1, last) if tick % max(1, last // 8) == 0)}))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, place: _layer(round(value), last)))


def _layer(number: int, last: int) -> str:
    return {0: "emb", last: "head"}.get(number, str(number))


def _measured(runs: Runs) -> list[tuple[str, str]]:
    """The languages and splits whose similarity any run has measured."""
    records = [record.get("similarity", {}) for run in runs.values() for record in run.records]
    return [
        (language, split)
        for language in _all(records)
        for split in ("held_in", "held_out")
        if any(found.get(language, {}).get(split) for found in records)
    ]


def _titled(language: str, split: str) -> str:
    return language if split == "held_in" else f"{language}, words held out of training"


_TRAINING = (
    "Means over all layers. Solid: words and their translations; dashed: other pairs. P@1: how often a word's nearest "
    "neighbour, by CSLS, is its translation, the mean of both directions. The panel of stage 1 shows the words of the "
    "training batches themselves."
)


def _over_training(runs: Runs) -> list[Panel]:
    marks, found = _ends_of_alignment(runs), []
    lines = []
    for place, (name, run) in enumerate(runs.items()):
        for kind, look in _BATCH_PAIRS:
            points = [(r["tokens"], sum(r[kind]) / len(r[kind])) for r in run.metrics if kind in r]
            lines.append(Line(name, place, thin(points), look))
    found.append(line_panel("Stage 1, words of the batches", lines, "cosine", limits=(None, 1.05)))
    for language, split in _measured(runs):
        cosines, retrieved = [], []
        for place, (name, run) in enumerate(runs.items()):
            for kind, look in _PAIRS:
                cosines.append(Line(name, place, _means(run, kind, language, split), look))
            retrieved.append(Line(name, place, _means(run, "p_at_1", language, split), "marked"))
        title = _titled(language, split)
        found.append(line_panel(f"{title}: cosine", cosines, "cosine", limits=(None, 1.05), marks=marks))
        found.append(line_panel(f"{title}: P@1", retrieved, "P@1", limits=(0, 1.05), marks=marks))
    return _some(*found)


def _means(run: RunFolder, kind: str, language: str, split: str) -> Points:
    return [(tokens, float(np.nanmean(layers))) for tokens, layers in run.cosines(kind, language, split)]


_HEAT = (
    "Cosine of words with their translations less that with other words' translations: 1 is perfect alignment, 0 none. "
    "The mean over the languages, at each evaluation; the dotted line is the end of stage 1."
)


def _heat_maps(runs: Runs) -> list[Panel]:
    found = []
    for name, run in runs.items():
        aligned, others = run.cosines("cosine", None), run.cosines("random", None)
        if len(aligned) >= 2:
            gaps = np.array([one for _, one in aligned]) - np.array([other for _, other in others])
            found.append(_heat_map(name, [tokens for tokens, _ in aligned], gaps, run))
    return found


def _heat_map(name: str, tokens: Sequence[float], gaps: np.ndarray, run: RunFolder) -> Panel:
    last = gaps.shape[1] - 1

    def draw(figure: Figure, panel: Axes) -> None:
        middles = (np.array(tokens[1:]) + np.array(tokens[:-1])) / 2
        edges = np.concatenate([[2 * tokens[0] - middles[0]], middles, [2 * tokens[-1] - middles[-1]]])
        mesh = panel.pcolormesh(
            edges, np.arange(-0.5, last + 1), gaps.T, cmap="cividis", vmin=0, vmax=1, rasterized=True
        )  # fmt: skip
        if run.tokens > run.align_tokens > edges[0]:
            panel.axvline(run.align_tokens, color="white", linewidth=1.2, linestyle=":")
        panel.grid(False)
        panel.set(xlabel="LM tokens", ylabel="layer")
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, place: short_number(value)))
        panel.set_yticks(sorted({0, last, *(tick for tick in range(1, last) if tick % max(1, last // 8) == 0)}))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, place: _layer(round(value), last)))
        figure.colorbar(mesh, ax=panel, pad=0.02).outline.set_visible(False)

    ends = ", ".join(f"{_layer(layer, last)} {gap:.2f}" for layer, gap in enumerate(gaps[-1].tolist()))
    return svg_panel(name, f"{name}: alignment of each layer over LM tokens; at the end {ends}", draw)


_SWITCHES = (
    "Share of the source language's words that stage 2 switched. Solid: realised; dashed: expected, which is the ratio "
    "asked for times the share of drawn words that the table covers. By language, dashed is its part of that by "
    "weight, which a language reaches that covers the same words as the others do."
)


def _switches(runs: Runs) -> list[Panel]:
    expected = {name: run.curve("codeswitch_expected_rate") for name, run in runs.items()}
    realised = {name: run.curve("codeswitch_rate") for name, run in runs.items()}
    by_language = {name: _rates_by_language(run) for name, run in runs.items()}
    languages = _all(by_language.values())
    found = [_rates("all words", realised, expected)]
    for language in languages if len(languages) > 1 else []:
        shares = {name: _share(run, language, by_language[name]) for name, run in runs.items()}
        found.append(
            _rates(
                language,
                {name: rates.get(language, []) for name, rates in by_language.items()},
                {name: [(x, y * shares[name]) for x, y in points] for name, points in expected.items()},
            )
        )
    return _some(*found)


def _rates(title: str, realised: Mapping[str, Points], expected: Mapping[str, Points]) -> Panel | None:
    kinds: tuple[tuple[Mapping[str, Points], Look], ...] = ((realised, "plain"), (expected, "dashed"))
    lines = []
    for place, name in enumerate(realised):
        for rates, look in kinds:
            percent = [(x, 100 * y) for x, y in smooth(rates[name])]
            lines.append(Line(name, place, thin(percent), look))
    return line_panel(title, lines, "switched words, %")


def _rates_by_language(run: RunFolder) -> dict[str, Points]:
    rates: dict[str, Points] = {}
    for record in run.metrics:
        for language, rate in record.get("codeswitch_rate_by_language", {}).items():
            rates.setdefault(language, []).append((record["tokens"], rate))
    return rates


def _share(run: RunFolder, language: str, rates: Mapping[str, Points]) -> float:
    switch = run.settings.codeswitch
    weights = switch.language_ratios or switch.language_weights or dict.fromkeys(rates, 1.0)
    return weights.get(language, 0.0) / (sum(weights.values()) or 1.0)


_SPEED = (
    "Of all ranks together, evaluations and checkpoints included, which show as dips. MFU: share of the GPUs' 16-bit "
    "peak that stage 2's arithmetic is. Data wait: share of a step in which the first rank waited for its batch."
)


def _speed(runs: Runs) -> list[Panel]:
    marks, found = _ends_of_alignment(runs), []
    for title, value, unit in (
        ("Throughput", lambda record: record["tokens_per_s"], "tokens/s"),
        ("MFU", lambda record: record["mfu"], "share of the peak"),
        ("Data wait", lambda record: 100 * record["data_wait_ms"] / record["step_ms"], "% of a step"),
    ):
        curves = {
            name: [
                [(r["tokens"], value(r)) for r in run.metrics if r["stage"] == stage and value(r) is not None]
                for stage in run.settings.stages
            ]
            for name, run in runs.items()
        }
        found.append(line_panel(title, _raw_and_smooth(curves), unit, limits=(0, None), marks=marks))
    return _some(*found)


def _numbers(runs: Runs) -> str:
    """The table of final numbers, the best of each language in bold."""
    whole = all(run.evaluation.get("perplexity") for run in runs.values())
    found = {
        name: {"perplexity": run.evaluation["perplexity"]} if whole else _last(run.records, "perplexity")
        for name, run in runs.items()
    }
    languages = _all(record.get("perplexity", {}) for record in found.values())
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
