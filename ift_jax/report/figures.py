"""Plots drawn by matplotlib: once, as SVG that takes the page's colours, or as SVG and PNG files.

Figures are drawn in the colours of a light ground. In the page those become the style sheet's
variables, so that a figure turns dark with it.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ift_jax.errors import InputError
from ift_jax.report.elements import Lines, Plot, Whiskers
from ift_jax.report.palette import ROLES, SERIES

# Of a phone's width less the page's margins, so that letters are as large there as other text.
WIDTH_IN, HEIGHT_IN = 3.5, 2.55
DPI = 200  # of PNG files
MAX_LABEL = 22  # letters beside a curve
MAX_ROW_LABEL = 48  # letters above a value with its interval
AXIS_POINTS, LETTER_POINTS = 140, 5.5  # of a plot beside whose curves names stand

_INK, _MUTED, _RULE = (ROLES[role].light for role in ("ink", "muted", "rule"))
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may hold a $
}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def page_svg(plot: Plot) -> str:
    """A plot as an <svg> element, its colours those of the page.

    The text alternative stands in its aria-label. Nothing in it is user input but text, which
    matplotlib escapes.
    """
    svg = _svg(plot)
    svg = svg[svg.index("<svg") :]
    for role, shade in ROLES.items():
        svg = svg.replace(shade.light, f"var(--{role})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several figures in one page must not share ids.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{plot.name}-", svg)
    size = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg[: svg.index(">")])
    return size + svg[svg.index(">") :]


def save_figures(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Writes each plot as NAME.svg and NAME.png, and returns their paths.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if not can_draw():
        raise InputError('--figures: needs matplotlib; run `pip install "ift_jax[report]"`')
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots:
        path = folder / f"{plot.name}.svg"
        path.write_text(_svg(plot, facecolor="white"), encoding="utf-8")
        with _styled(plot):
            _figure(plot).savefig(path.with_suffix(".png"), dpi=DPI, facecolor="white")
        written += [path, path.with_suffix(".png")]
    return written


def _svg(plot: Plot, **options: Any) -> str:
    text = io.StringIO()
    with _styled(plot), warnings.catch_warnings():
        # A letter that the measuring font lacks is drawn by the browser's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        dateless = {"Date": None, "Creator": None}
        _figure(plot).savefig(text, format="svg", metadata=dateless, transparent=True, **options)
    return text.getvalue()


@contextmanager
def _styled(plot: Plot) -> Iterator[None]:
    import matplotlib

    # The salt makes the same plot the same file.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        yield


def _figure(plot: Plot) -> Any:
    return _lines_figure(plot) if isinstance(plot, Lines) else _whiskers_figure(plot)


def _colour(number: int) -> str:
    return _MUTED if number < 0 else SERIES[number % len(SERIES)].light


_CURVES: dict[str, Any] = {
    "bold": {"linewidth": 1.8, "marker": "o", "markersize": 3.2},
    "thin": {"linewidth": 1.0, "alpha": 0.75},
    "dashed": {"linewidth": 1.2, "linestyle": (0, (4, 3))},
}


def _lines_figure(plot: Lines) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    # Many bands over each other would hide the lines.
    alpha = 0.15 if sum(bool(curve.low) for curve in plot.curves) < 3 else 0.07
    for curve in plot.curves:
        colour = _colour(curve.colour)
        axes.plot(curve.x, curve.y, color=colour, **_CURVES[curve.style])
        if len(curve.low):
            axes.fill_between(
                curve.x, curve.low, curve.high, color=colour, alpha=alpha, linewidth=0
            )
        for x, y, name in zip(curve.x, curve.y, curve.names, strict=False):
            axes.annotate(
                name, (x, y), (4, 4), textcoords="offset points", color=_MUTED, fontsize=7
            )
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    if plot.log_x:
        axes.set_xscale("log")
        ticks = sorted({x for curve in plot.curves for x in curve.x})
        axes.set_xticks(ticks, _apart(ticks))
        axes.set_xticks([], minor=True)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=plot.x_label == "step"))
    _label_ends(figure, axes, plot)
    return figure


def _apart(ticks: Sequence[float]) -> list[str]:
    """Labels of a logarithmic axis, from the largest down; "" where one would touch the next.

    Example:
        >>> _apart([50, 100, 250, 500, 1000, 2000, 4000])
        ['50', '100', '250', '', '1,000', '', '4,000']
    """
    labels = [f"{x:,g}" for x in ticks]
    span = math.log(ticks[-1] / ticks[0]) or 1.0
    free = math.inf  # up to where nothing is written yet, in points
    for i in reversed(range(len(ticks))):
        centre = AXIS_POINTS * math.log(ticks[i] / ticks[0]) / span
        half = LETTER_POINTS * len(labels[i]) / 2
        if centre + half > free:
            labels[i] = ""
        else:
            free = centre - half - LETTER_POINTS
    return labels


def _label_ends(figure: Any, axes: Any, plot: Lines) -> None:
    """Each curve's label at its right end, pushed apart where they would overlap."""
    ends = []
    for curve in plot.curves:
        points = [
            (x, y)
            for x, y in zip(curve.x, curve.y, strict=True)
            if curve.label and math.isfinite(y)
        ]
        if points:
            ends.append((points[-1], curve))
    if not ends:
        return
    right = max(x for (x, _), _ in ends)
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    ends.sort(key=lambda end: end[0][1])
    heights = [y for (_, y), _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    above = max(0.0, heights[-1] - high)
    for i in reversed(range(len(heights))):
        limit = heights[i + 1] - gap if i + 1 < len(heights) else high
        heights[i] = min(heights[i] - above, limit) if above else heights[i]
    for (_, curve), height in zip(ends, heights, strict=True):
        axes.annotate(
            _shortened(curve.label),
            (right, height),
            (6, 0),
            textcoords="offset points",
            color=_colour(curve.colour),
            va="center",
            annotation_clip=False,
        )


def _shortened(label: str, size: int = MAX_LABEL) -> str:
    if len(label) <= size:
        return label
    half = size // 2
    return f"{label[: half - 1]}…{label[-half:]}"


def _whiskers_figure(plot: Whiskers) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = 0.62 + 0.36 * max(len(plot.dots), 1)
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    for row, dot in enumerate(plot.dots):
        colour = _colour(dot.colour)
        axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=2.2, alpha=0.55,
                  solid_capstyle="round")  # fmt: skip
        axes.plot([dot.value], [row], color=colour, marker="o", markersize=5, clip_on=False)
        text = _shortened(dot.label, MAX_ROW_LABEL)
        axes.text(0, row - 0.3, text, transform=axes.get_yaxis_transform(), va="center",
                  color=_INK, fontsize=8)  # fmt: skip
    axes.set_ylim(len(plot.dots) - 0.5, -0.7)
    axes.set_xlim(*(plot.reach or axes.get_xlim()))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if axes.get_xlim()[0] < 0:
        axes.axvline(0, color=_MUTED, linewidth=0.8)
    axes.set(xlabel=plot.x_label, yticks=[])
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return figure
