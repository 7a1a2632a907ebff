"""Words and their translations in the plane: where the input embedding puts them before and after stage 1.

Shape letters: n pairs, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.nn import functional
from transformers import PreTrainedModel

from prealign_ds.alignment.rows import TableRows
from prealign_ds.reporting.charts import Panel, colour, svg_panel
from prealign_ds.reporting.runs import RunFolder
from prealign_ds.training.environment import World
from prealign_ds.training.run import Run

_LABELS = 30
_SIZE = 7.0


@dataclass(frozen=True)
class WordPairs:
    """Frequent words and a translation of each, in one or more languages.

    Attributes:
        words: The n words.
        translations: Theirs.
        languages: Of the translations.
        before: Vectors of length 1 of words and of translations, two arrays of shape (n, H), before stage 1.
        after: After stage 1.
    """

    words: list[str]
    translations: list[str]
    languages: list[str]
    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]


def embedded_pairs(run: RunFolder, number: int = 100) -> WordPairs:
    """The input embeddings (the mean over a word's tokens) of a run's most frequent trained words.

    Args:
        run: A run whose stage 1 is done.
        number: Pairs, shared by the languages.

    Raises:
        ValueError: If files of the run's data are gone.
    """
    built = Run(run.settings, World(0, 1, torch.device("cpu")))
    table, model = built.table, built.new_model()
    rows = TableRows(table, built.tokenizer, run.settings.align.positives)
    share = max(1, number // len(table.languages))
    left = dict.fromkeys(range(len(table.languages)), share)
    chosen, seen = [], set()
    for place, edge in enumerate(rows.pair_edge.tolist()):  # the most frequent words come first
        word, language = int(table.edge_word[edge]), int(table.edge_language[edge])
        if table.edge_held_out[edge] or not left[language] or not any(map(str.isalpha, table.words[word])):
            continue
        if (word, language) not in seen:
            seen.add((word, language))
            left[language] -= 1
            chosen.append(place)
    if not chosen:
        raise ValueError("the table has no trained word with a letter")
    edges = rows.pair_edge[chosen]
    pairs = rows.pairs[chosen]
    before = _vectors(model, rows, pairs)
    del model
    return WordPairs(
        [table.words[word] for word in table.edge_word[edges].tolist()],
        [table.edge_text[edge] for edge in edges.tolist()],
        [table.languages[language] for language in table.edge_language[edges].tolist()],
        before,
        _vectors(built.saved_model(run.folder / "align"), rows, pairs),
    )


@torch.no_grad()
def _vectors(model: PreTrainedModel, rows: TableRows, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = []
    for side in pairs.T:
        input_ids, mask = (torch.from_numpy(array) for array in rows.padded(side))
        weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
        vectors_nH = (model.get_input_embeddings()(input_ids) * weights).sum(1)
        sides.append(functional.normalize(vectors_nH, dim=1).numpy())
    return sides[0], sides[1]


def aligned_and_random(words: Sequence[str], sides: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Mean cosine of the pairs, and of every word with the translations of other words."""
    cosines_nn = sides[0] @ sides[1].T
    others = np.array(words)[:, None] != np.array(words)
    return float(np.diag(cosines_nn).mean()), float(cosines_nn[others].mean()) if others.any() else float("nan")


def project(sides: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """Both sides on their two principal components, fitted to both together, and the share of variance these hold."""
    both = np.concatenate(sides).astype(np.float64)
    left, singular, _ = np.linalg.svd(both - both.mean(0), full_matrices=False)
    flat = np.pad(left * singular, ((0, 0), (0, 2)))[:, :2]
    flat *= np.where(flat[np.abs(flat).argmax(0), [0, 1]] < 0, -1, 1)  # a component's sign is arbitrary
    flat = flat.round(6)  # the same vector twice is one place
    share = float((singular[:2] ** 2).sum() / max((singular**2).sum(), 1e-30))
    return flat[: len(sides[0])], flat[len(sides[0]) :], share


def word_panels(name: str, pairs: WordPairs, languages: Sequence[str]) -> list[Panel]:
    """The pictures of a run's words before and after stage 1; ``languages`` have the colours from the second on."""
    colours = [colour(1 + languages.index(language)) for language in pairs.languages]
    found = []
    for when, sides in (("before stage 1", pairs.before), ("after stage 1", pairs.after)):
        sources, targets, share = project(sides)
        aligned, random = aligned_and_random(pairs.words, sides)
        title = f"{name}, {when}: cosine of pairs {aligned:.2f}, of others {random:.2f}"
        alt = f"{title}; {len(sources)} words and their translations on two principal components"
        draw = partial(_draw_pairs, pairs=pairs, colours=colours, sources=sources, targets=targets, share=share)
        found.append(svg_panel(title, alt, draw, height=4.0))
    return found


def _draw_pairs(
    figure: Figure,
    panel: Axes,
    pairs: WordPairs,
    colours: Sequence[str],
    sources: np.ndarray,
    targets: np.ndarray,
    share: float,
) -> None:
    for source, target, shade in zip(sources, targets, colours, strict=True):
        panel.plot(*zip(source, target, strict=True), color=shade, linewidth=0.7, alpha=0.5, zorder=1)
    panel.scatter(sources[:, 0], sources[:, 1], s=12, color=colour(0), zorder=2)
    panel.scatter(targets[:, 0], targets[:, 1], s=14, color=colours, marker="^", zorder=2)
    panel.set(xticks=[], yticks=[], xlabel=f"two principal components, {100 * share:.0f} % of the variance")
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.set_aspect("equal", adjustable="datalim")
    figure.draw_without_rendering()  # settles the axes, so that labels know where they will stand
    texts: dict[tuple[float, float], str] = {}  # by their place: a word with several translations is written once
    for (x, y), (u, v), word, text in zip(sources, targets, pairs.words, pairs.translations, strict=True):
        texts.setdefault((x, y), word)
        if text != word:
            texts.setdefault((u, v), text)
    _label(panel, texts, np.concatenate([sources, targets]))


def _label(panel: Axes, texts: Mapping[tuple[float, float], str], points: np.ndarray) -> None:
    """Write the first texts for which there is room beside their points, on the right or on the left."""
    scale = panel.figure.dpi / 72
    dots = panel.transData.transform(points) / scale
    taken = np.concatenate([dots - 2, dots + 2], 1)  # left, bottom, right, top, in points of the page
    places = panel.transData.transform(list(texts)) / scale
    number = 0
    for (point, text), (x, y) in zip(texts.items(), places, strict=True):
        width = 0.6 * _SIZE * len(text) + 2
        for left, side in ((x + 3, "left"), (x - 3 - width, "right")):
            box = np.array([left, y - _SIZE / 2, left + width, y + _SIZE / 2])
            if number < _LABELS and not ((box[:2] < taken[:, 2:]) & (taken[:, :2] < box[2:])).all(1).any():
                taken, number = np.concatenate([taken, box[None]]), number + 1
                style: dict[str, Any] = {"fontsize": _SIZE, "ha": side, "va": "center_baseline", "parse_math": False}
                offset = (4 if side == "left" else -4, 0)
                panel.annotate(text, point, offset, textcoords="offset points", **style)
                break
