"""Charts by matplotlib: as PNG files, and as SVG that takes the colours of the page it stands in."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = (
    "#2f86c6", "#d95f0e", "#2a9d6f", "#c2589f", "#a08c14", "#4cb8d8", "#8667c4", "#d9534f", "#7d8790", "#8a5a3c",
)  # fmt: skip
"""One a run, seen on white and on black; after the tenth they begin again."""
MARKERS = "osD^vPX*<>"
_DPI = 110
_INK = "#010203"
"""Stands for the page's own text colour."""
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prealign",
    "font.size": 9.0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


Look = Literal["plain", "marked", "dashed", "faint"]


@dataclass(frozen=True)
class Panel:
    """A chart on a page.

    Attributes:
        title: Above it.
        svg: The picture, an SVG element without width and height.
    """

    title: str
    svg: str

    def html(self) -> str:
        """The panel as HTML."""
        return f"<figure><figcaption>{escape(self.title)}</figcaption>{self.svg}</figure>"


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Whose it is.
        place: Decides its colour and marker.
        points: Pairs (x, y) by x.
        look: ``faint`` and ``dashed`` lines go with the plain or marked one of the same name.
    """

    name: str
    place: int
    points: Sequence[tuple[float, float]]
    look: Look = "plain"


def panels(columns: int, rows: int = 1, width: float = 4.6, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure of charts with light grids, and its axes of shape (rows, columns)."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg_panel(title: str, alt: str, draw: Callable[[Figure, Axes], None], height: float = 3.2) -> Panel:
    """A chart that ``draw`` fills; ``alt`` tells who cannot see it what it shows."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has its own fonts
        figure, axes = panels(1, height=height)
        draw(figure, axes[0][0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, dpi=_DPI, metadata={"Date": None})
    _, _, inside = buffer.getvalue().partition("<svg ")
    attributes, _, drawing = inside.partition(">")
    view = re.search(r'viewBox="[^"]*"', attributes)
    assert view is not None, "matplotlib writes a viewBox"
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    prefix = f"p{zlib.crc32((title + drawing).encode()):x}"
    drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)  # several pictures stand on one page
    drawing = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", drawing).replace(_INK, "currentColor")
    return Panel(title, f'<svg role="img" aria-label="{escape(alt)}" {view[0]}>{drawing.strip()}')


def line_panel(
    title: str,
    lines: Sequence[Line],
    ylabel: str,
    xlabel: str = "LM tokens",
    scale: Literal["linear", "log"] = "linear",
    limits: tuple[float | None, float | None] = (None, None),
    marks: Sequence[tuple[float, int | None]] = (),
    settle: Callable[[Axes], None] | None = None,
) -> Panel | None:
    """A chart of lines, or None if none has a point.

    Args:
        title: Above the chart.
        lines: What to draw.
        ylabel: What goes up.
        xlabel: What goes right.
        scale: Of the upward axis.
        limits: Of the upward axis.
        marks: Dotted upright lines: where, and the place of their colour, or None for the ink's.
        settle: Changes the axes last.
    """
    drawn = [line for line in lines if any(np.isfinite(y) for _, y in line.points)]
    if not drawn:
        return None

    def draw(figure: Figure, panel: Axes) -> None:
        for number, line in enumerate(drawn):
            panel.plot(*zip(*line.points, strict=True), **_style(line, 2.6 - 1.6 * number / len(drawn)))
        for x, place in marks:
            panel.axvline(x, color=_INK if place is None else colour(place), linewidth=0.8, linestyle=":")
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, place: short_number(value)))
        _settle_height(panel, scale, limits, [y for line in drawn for _, y in line.points if np.isfinite(y)])
        if settle is not None:
            settle(panel)

    ends = {line.name: line.points[-1][1] for line in drawn if line.look in ("plain", "marked")}
    shown = ", ".join(f"{name} ends at {value:.4g}" for name, value in ends.items())
    return svg_panel(title, f"{title}: {ylabel} over {xlabel}; {shown}", draw)


def _style(line: Line, width: float) -> dict[str, Any]:
    """Later lines are thinner: one that lies on another leaves both to be seen."""
    marker = {"marker": MARKERS[line.place % len(MARKERS)], "markersize": 2.5 + width}
    looks: dict[Look, dict[str, Any]] = {
        "plain": {"linewidth": width},
        "marked": {"linewidth": width, **marker},
        "dashed": {"linewidth": 0.6 * width, "linestyle": "--"},
        "faint": {"linewidth": 0.8, "alpha": 0.3},
    }
    alone = marker if len(line.points) == 1 else {}
    return {"color": colour(line.place), **looks[line.look], **alone}


def _settle_height(panel: Axes, scale: str, limits: tuple[float | None, float | None], ys: Sequence[float]) -> None:
    panel.set_ylim(*limits)
    if scale == "log":
        panel.set_yscale("log")
        wide = max(ys) > 15 * min(ys)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6, steps=[1, 2, 5, 10]))
        panel.yaxis.set_minor_locator(NullLocator())
    if scale == "log" or max(map(abs, ys)) >= 1000:
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, place: short_number(value)))


def colour(place: int) -> str:
    """The colour of the run at ``place``."""
    return COLOURS[place % len(COLOURS)]


def short_number(value: float) -> str:
    """A number in the units of axes: ``2.5M``, ``300k``."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of each point's neighbourhood: a twelfth of all points, less at the ends."""
    if not points:
        return []
    xs, ys = np.array(points, dtype=float).T
    reach = len(ys) // 25
    sums = np.concatenate([[0.0], np.cumsum(ys)])
    places = np.arange(len(ys))
    some = np.minimum(np.minimum(places, places[::-1]), reach)
    means = (sums[places + some + 1] - sums[places - some]) / (2 * some + 1)
    return list(zip(xs.tolist(), means.tolist(), strict=True))


def thin(points: Sequence[tuple[float, float]], most: int = 1500) -> list[tuple[float, float]]:
    """Every n-th point, so that at most ``most`` and the last remain."""
    step = max(1, -(-len(points) // most))
    return [*points[:-1:step], *points[-1:]]
