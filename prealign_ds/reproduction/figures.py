"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prealign_ds.reporting.charts import panels, png, short_number
from prealign_ds.reproduction.systems import SYSTEMS

CHANCE = 25.0
_COLOURS = {"joint": "#7a7a7a", "joint_cs": "#e08214", "init_only": "#4393c3", "prealign": "#b2182b"}
_BETAS = {"prealign_beta25": 25, "prealign_beta50": 50, "prealign_beta75": 75, "prealign": 100}
_Series = Mapping[str, Sequence[Sequence[float]]]


def draw_figures(results: Mapping[str, Any]) -> dict[str, bytes]:
    """A PNG of each figure that ``results`` (of ``results.json``) has numbers for, by its key there."""
    starts = _ends_of_alignment(results)
    drawn = {
        "figure3": _knowledge(results["figure3"]) if results["figure3"] else None,
        "figure4": _similarity(results, starts) if results["figure4"] else None,
        "figure5": _seen_words(results["figure5"], results["figure5_joint"]) if results["figure5"] else None,
        "perplexity_ratio": _ratio(results["perplexity_ratio"], starts) if results["perplexity_ratio"] else None,
    }
    return {name: png(figure) for name, figure in drawn.items() if figure is not None}


def _ends_of_alignment(results: Mapping[str, Any]) -> int:
    """LM tokens of PreAlign's stage 1; 0 where that run is missing."""
    return results["settings"]["runs"].get("en_clone", {}).get("prealign", {}).get("align_tokens", 0)


def _over_tokens(panel: Axes, series: _Series, align_tokens: int) -> None:
    for name, points in series.items():
        colour = _COLOURS.get(name)
        title = SYSTEMS[name].title if name in SYSTEMS else name
        panel.plot([x for x, _ in points], [y for _, y in points], ".-", color=colour, label=title)
    if align_tokens:
        panel.axvline(align_tokens, color="black", linewidth=0.8, linestyle=":")
    panel.set_xlabel("LM tokens (dotted: end of stage 1)" if align_tokens else "LM tokens")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, place: short_number(value)))


def _knowledge(found: Mapping[str, Any]) -> Figure:
    """By direction: accuracy over the frequency of a fact, and in each period."""
    directions = list(dict.fromkeys(direction for kinds in found.values() for direction in kinds))
    figure, axes = panels(len(directions), 2, 3.4)
    for column, direction in enumerate(directions):
        above, below = axes[0][column], axes[1][column]
        for slug, kinds in found.items():
            frequencies = sorted((x for x in kinds.get(direction, {}) if x != "all"), key=int)
            cells = [kinds[direction][x] for x in frequencies]
            means = [cell["mean"] for cell in cells]
            errors = [
                [cell["mean"] - cell["ci95"][0] for cell in cells],
                [cell["ci95"][1] - cell["mean"] for cell in cells],
            ]
            style = {"color": _COLOURS.get(slug), "label": SYSTEMS[slug].title, "capsize": 2}
            above.errorbar([int(x) for x in frequencies], means, errors, fmt=".-", **style)
        _over_tokens(below, {slug: kinds[direction]["all"]["periods"] for slug, kinds in found.items()}, 0)
        above.set_xscale("log")
        above.xaxis.set_major_locator(FixedLocator([int(x) for x in frequencies]))
        above.xaxis.set_minor_locator(NullLocator())
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        above.set(title=direction.replace("->", " → "), xlabel="times told")
        below.set_xlabel("LM tokens at the period's end")
        for panel in (above, below):
            panel.axhline(CHANCE, color="black", linewidth=0.8, linestyle="--")
            panel.set_ylim(0, 100)
    axes[0][0].set_ylabel("known facts, %")
    axes[1][0].set_ylabel("known facts, % (all)")
    axes[0][0].legend(fontsize="small")
    return figure


def _similarity(results: Mapping[str, Any], align_tokens: int) -> Figure:
    figure, axes = panels(2)
    for panel, key, title in zip(
        axes[0], ("figure4", "figure4_embeddings"), ("mean over all layers", "input embeddings"), strict=True
    ):
        _over_tokens(panel, results[key], align_tokens)
        for slug, points in results[f"{key}_random"].items():
            panel.plot([x for x, _ in points], [y for _, y in points], "--", color=_COLOURS[slug], linewidth=0.9)
        panel.set(title=title, ylabel="cosine of aligned words", ylim=(-0.15, 1.05))
    axes[0][0].legend(fontsize="small")
    return figure


def _seen_words(found: Mapping[str, Any], joint: Mapping[str, Any]) -> Figure:
    """Perplexity on seen and on unseen words over the share of W that was aligned, and Joint Training's on the same."""
    languages = list(dict.fromkeys(language for groups in found.values() for language in groups))
    figure, axes = panels(2 * len(languages))
    groups_of = [(language, group) for language in languages for group in ("seen", "unseen")]
    for panel, (language, group) in zip(axes[0], groups_of, strict=True):
        for title, slug, system in (("Joint Training", "joint", joint), ("PreAlign", "prealign", found)):
            cells = [(_BETAS[slug], groups.get(language, {}).get(group)) for slug, groups in system.items()]
            points = sorted((beta, value) for beta, value in cells if value is not None)
            panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=_COLOURS[slug], label=title)
        panel.set(title=f"{language}: {group} words", xlabel="aligned share of W, %", ylabel="perplexity")
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(FixedLocator(list(_BETAS.values())))
        panel.legend(fontsize="small")
    return figure


def _ratio(series: _Series, align_tokens: int) -> Figure:
    figure, axes = panels(1, width=6.0)
    panel = axes[0][0]
    _over_tokens(panel, series, align_tokens)
    panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    panel.set_ylabel("perplexity, PreAlign / Joint")
    panel.legend(fontsize="small")
    return figure
