"""Curves as inline SVG, in colours that the page's style decides.

matplotlib draws lines and numbers only. Names, which come from other people's sites, stay in the
page's own text, where they are escaped and laid out in fonts that have their letters.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hanse_server.report import formats

COLOURS = 8
"""Colours of series in the style sheet, ``--series-0`` to ``--series-7``."""

WIDTH, HEIGHT = 5.4, 2.5  # inches: two beside each other on a page
DOTTED_UP_TO = 40  # points: with more, dots would cover the line

_STEPS = [1, 2, 2.5, 5, 10]  # between ticks, times a power of ten

# matplotlib wants colours; each of these stands for a variable of the style sheet.
_INK, _LINE = "#fe0001", "#fe0002"
_SERIES = [f"#fe01{index:02x}" for index in range(COLOURS)]
_VARIABLES = {_INK: "var(--soft)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout is the same everywhere
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        points: (round, value), rounds ascending.
        colour: number of its colour, below :data:`COLOURS`.
        dashed: a bound rather than a measurement.
    """

    label: str
    points: Sequence[tuple[int, float]]
    colour: int = 0
    dashed: bool = False


def draw(key: str, series: Sequence[Series], *, shares: bool = False, from_zero: bool) -> str:
    """The curves as an ``<svg>`` element, the same bytes each time.

    Args:
        key: of the figure, unique on the page.
        shares: whether the values are shares, to be shown in per cent.
        from_zero: whether the axis starts at 0.
    """
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's own matplotlibrc says
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": key})
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        for each in series:
            _plot(axes, each)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if shares:
            axes.yaxis.set_major_formatter(FuncFormatter(_per_cent))
        return _inline(_svg(figure))


def _plot(axes: Axes, series: Series) -> None:
    rounds = [number for number, _ in series.points]
    values = [value for _, value in series.points]
    dots = "o" if len(rounds) <= DOTTED_UP_TO and not series.dashed else "none"
    axes.plot(
        rounds,
        values,
        color=_INK if series.dashed else _SERIES[series.colour],
        linestyle="--" if series.dashed else "-",
        linewidth=1.0 if series.dashed else 1.6,
        marker=dots,
        markersize=2.6,
        clip_on=False,
    )


def _per_cent(value: float, _: object) -> str:
    return f"{value * 100:g}{formats.SPACE}%"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    return text.getvalue()


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: without prologue, name spaces, style, unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r" id=\"([^\"]*)\"", lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
