"""What the paper measured (arXiv 2407.16222), in the shape of our results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SIZES = ("150m", "400m", "1.3b")
REAL_LANGUAGES = ("en", "zh", "de", "ar", "ru")
"""In the order of the paper's Table 5."""

_CLONE = ("en", "clone")
_BETAS = {
    "prealign_beta25": (17.0, 78.2, 58.5),
    "prealign_beta50": (16.8, 78.6, 60.9),
    "prealign_beta75": (16.6, 78.8, 62.1),
    "prealign": (16.5, 79.3, 64.6),
}
_ABLATION = {
    "joint": (21.6, 74.9, 27.7),
    "joint_cs": (19.7, 76.1, 32.6),
    "init_only": (17.1, 77.8, 54.5),
    "prealign": (16.5, 79.3, 64.6),
}
_REAL = {
    "150m": {
        "joint": ((25.7, 99.7, 43.5, 46.9, 49.8), (80.6, 24.6, 63.5, 58.3, 62.0), (25.7, 25.4, 25.8, 26.8)),
        "prealign": ((25.4, 91.1, 39.8, 40.7, 44.6), (80.6, 69.2, 67.5, 60.8, 65.1), (45.7, 48.2, 43.4, 46.0)),
    },
    "400m": {
        "joint": ((20.3, 79.8, 32.5, 34.8, 39.6), (82.3, 65.8, 65.3, 56.9, 63.7), (31.2, 30.5, 34.1, 29.7)),
        "prealign": ((19.9, 75.2, 28.3, 30.7, 33.6), (82.4, 70.0, 69.3, 65.6, 68.2), (50.2, 51.0, 49.3, 48.9)),
    },
    "1.3b": {
        "joint": ((15.8, 62.2, 24.0, 27.7, 31.2), (84.3, 70.8, 70.6, 63.7, 68.6), (36.7, 35.6, 36.4, 33.0)),
        "prealign": ((16.1, 58.0, 23.3, 25.3, 29.4), (83.9, 74.0, 72.9, 68.2, 71.4), (54.3, 53.1, 52.4, 50.1)),
    },
}  # fmt: skip


def paper_results(size: str) -> dict[str, Any]:
    """The paper's tables; perplexities, and percentages for all else.

    Args:
        size: The model of Table 5, one of :data:`SIZES`; Tables 1 to 4 are always of 150M parameters.
    """
    clone = {slug: _cells(("clone",), (ppl,), (zs_clt,), (clka,)) for slug, (ppl, zs_clt, clka) in _ABLATION.items()}
    return {
        "table1": {
            "only_tgt": {"ppl": {"clone": 47.2}},
            "full_tgt": {"ppl": {"clone": 16.2}},
            "joint": _cells(_CLONE, (16.1, 21.6), (79.8, 74.9), (27.7,)),
            "prealign": _cells(_CLONE, (15.9, 16.5), (80.1, 79.3), (64.6,)),
        },
        "table2": clone,
        "table3": {
            "prealign_vanilla_cs": {"ppl": {"clone": 17.1}, "leakage": {"clone": _share(4.17)}},
            "prealign": {"ppl": {"clone": 16.5}, "leakage": {"clone": _share(0.02)}},
        },
        "table4": {slug: _cells(("clone",), (p,), (z,), (c,)) for slug, (p, z, c) in _BETAS.items()},
        "table5": {slug: _cells(REAL_LANGUAGES, *row) for slug, row in _REAL[size].items()},
    }


def _cells(
    languages: Sequence[str], ppl: Sequence[float], zs_clt: Sequence[float], clka: Sequence[float]
) -> dict[str, Any]:
    """The cells of a row; CLKA is of the last languages, without English."""
    return {
        "ppl": dict(zip(languages, ppl, strict=True)),
        "zs_clt": dict(zip(languages, zs_clt, strict=True)),
        "clka": {x: _share(value) for x, value in zip(languages[-len(clka) :], clka, strict=True)},
    }


def _share(percent: float) -> dict[str, Any]:
    return {"mean": percent, "ci95": None, "n": None}
