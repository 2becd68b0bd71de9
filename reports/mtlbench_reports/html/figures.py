"""Charts as inline SVG with text elements, ids that are unique on the page, and tooltips with values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from mtlbench.text import one_line
from mtlbench_reports.charts.chart import Chart, OmittedChart
from mtlbench_reports.charts.documents import image
from mtlbench_reports.charts.drawings import TableCharts
from mtlbench_reports.html.markup import Markup, el, join

_LINK = re.compile(r"url\(#([^)]*)\)")
_DROPPED = ("metadata", "style")
_ENLARGED = 1.2
"""Figures are sized for paper; on a screen they are shown larger."""


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """A chart on the page."""

    svg: Markup
    caption: str
    width: float
    """In inches."""


def figure(number: int, chart: Chart) -> PageFigure:
    """The chart of the table with this number."""
    svg = inline(chart, prefix=f"chart-{number}-{chart.name}")
    return PageFigure(svg=svg, caption=chart.caption, width=_ENLARGED * chart.figure.get_size_inches()[0])


def figures(drawn: TableCharts[PageFigure]) -> Markup:
    """The charts of a table, followed by the omitted ones with the reasons."""
    shown, omitted = [], []
    for chart in drawn.charts:
        if isinstance(chart, OmittedChart):
            omitted.append(el("li", f"{chart.title}: {chart.reason}."))
            continue
        shown.append(el("figure", chart.svg, el("figcaption", chart.caption), style=f"width:{chart.width:.2f}in"))
    reasons = el("details", el("summary", "Omitted charts"), el("ul", omitted)) if omitted else None
    return join(el("div", shown, class_="figures"), reasons)


def inline(chart: Chart, *, prefix: str) -> Markup:
    """The chart as an ``svg`` element; every id in it begins with ``prefix``."""
    root = ET.fromstring(image(chart.figure, "svg"))
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in _DROPPED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        gid = element.get("id", "")
        element.attrib = {_local(name): _renamed(_local(name), value, prefix) for name, value in element.attrib.items()}
        if gid in chart.hover:
            element.set("class", "value")
            title = ET.Element("title")
            title.text = one_line(chart.hover[gid])
            element.insert(0, title)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"id": prefix, "role": "img", "aria-label": chart.title})
    return Markup(ET.tostring(root, encoding="unicode"))


def _renamed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    return _LINK.sub(rf"url(#{prefix}-\1)", value) if "url(#" in value else value


def _local(name: str) -> str:
    return name.rpartition("}")[2]
