"""The curves of runs, section by section: losses, perplexities, alignment, switch rates, speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prealign_ds.reporting.charts import Line, Look, Panel, line_panel, short_number, smooth, svg_panel, thin
from prealign_ds.reporting.runs import Points, RunFolder

Runs = Mapping[str, RunFolder]
_PAIRS: tuple[tuple[str, Look], ...] = (("cosine", "marked"), ("random", "dashed"))
_BATCH_PAIRS: tuple[tuple[str, Look], ...] = (("aligned_cosine", "plain"), ("random_cosine", "dashed"))

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


def all_names(names: Iterable[Iterable[str]]) -> list[str]:
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
            for language in all_names(found.values())
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
        for language in all_names(records)
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
    languages = all_names(by_language.values())
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


SECTIONS: list[tuple[str, str, Callable[[Runs], list[Panel]]]] = [
    ("Losses", _LOSSES, _losses),
    ("Perplexity of held-out text", _PERPLEXITY, _perplexities),
    ("Alignment by layer", _LAYERS, _by_layer),
    ("Alignment during training", _TRAINING, _over_training),
    ("Alignment by layer during training", _HEAT, _heat_maps),
    ("Code-switching", _SWITCHES, _switches),
    ("Speed", _SPEED, _speed),
]
"""Titles, what is to be said of them, and their panels, of which there may be none."""
