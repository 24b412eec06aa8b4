"""Pictures of a section, as PNG and as SVG whose colours follow the page's.

The same drawing makes both: for the page every colour is a mark of its own, in whose place the name of a CSS
variable is put.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.report.drawings import draw_bars, draw_cost, draw_drift, draw_stream, draw_streams
from benchmarks.report.sections import Section

LIGHT: Mapping[str, str] = {
    "ink": "#1f2328", "muted": "#667085", "grid": "#e4e7ec", "paper": "#ffffff", "source": "#667085",
    "tcr": "#d9480f", "tcr_untrain": "#0b5cad", "rest_like": "#7048e8", "tent": "#15aabf", "eata": "#82a90d",
    "sar": "#2b8a3e", "read": "#d6336c", "shot": "#b08900", "deyo": "#7d5a3c", "other1": "#364fc7",
    "other2": "#087f5b", "other3": "#a61e4d", "other4": "#495057",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ink": "#e6e8eb", "muted": "#98a2b3", "grid": "#2f3540", "paper": "#171a1f", "source": "#98a2b3",
    "tcr": "#ff8a4c", "tcr_untrain": "#4dabf7", "rest_like": "#b197fc", "tent": "#66d9e8", "eata": "#c0eb75",
    "sar": "#69db7c", "read": "#faa2c1", "shot": "#ffd43b", "deyo": "#d0a985", "other1": "#91a7ff",
    "other2": "#63e6be", "other3": "#f783ac", "other4": "#ced4da",
}  # fmt: skip
_MARKS = {name: f"#0{number:02x}ef7" for number, name in enumerate(LIGHT)}
_SIZE = re.compile(r' (width|height)="([0-9.]+)pt"')
_PIXELS_OF_A_POINT = 1.25

Draw = Callable[[Section, Mapping[str, str]], Any]
_DRAWINGS: Sequence[tuple[str, str, Draw]] = (
    ("stream", "Recall over the stream, mean of the shifts", draw_stream),
    ("cost", "Gain against cost; hollow: on clean queries", draw_cost),
    ("bars", "Recall by shift", draw_bars),
    ("drift", "Modality gap and uniformity over the stream", draw_drift),
    ("streams", "Recall over the stream, shift by shift", draw_streams),
)


@dataclass(frozen=True)
class Plot:
    """name: part of the file's name; svg: to be put into a page."""

    name: str
    title: str
    png: bytes
    svg: str


def plots_of(section: Section) -> list[Plot]:
    """Those that the section has figures for. Raises ImportError: there is no matplotlib."""
    made = []
    for name, title, draw in _DRAWINGS:
        with _style(LIGHT):
            figure = draw(section, LIGHT)
            png = None if figure is None else _png(figure)
        if png is not None:
            with _style(_MARKS):
                made.append(Plot(name, title, png, _svg(draw(section, _MARKS), name)))
    return made


@contextmanager
def _style(colours: Mapping[str, str]) -> Iterator[None]:
    import matplotlib as mpl

    settings = {
        "font.family": "sans-serif",
        "font.size": 10,
        # Names come from files: a dollar sign in one is no formula.
        "text.parse_math": False,
        "svg.fonttype": "none",
        "text.color": colours["ink"],
        "axes.labelcolor": colours["muted"],
        "axes.edgecolor": colours["grid"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "grid.color": colours["grid"],
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "figure.facecolor": colours["paper"],
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Any, name: str) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # A page holds many: their inner names must differ, and be the same in every run.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for variable, mark in _MARKS.items():
        svg = svg.replace(mark, f"var(--{variable.replace('_', '-')})")
    # As wide as its place on the page, up to its own size; the view box keeps its shape.
    tag, rest = svg.split(">", 1)
    points = dict(_SIZE.findall(tag))
    width = _PIXELS_OF_A_POINT * float(points["width"])
    return f'{_SIZE.sub("", tag)} style="--size: {width:.0f}px">{rest}'
