"""Charts as files: the same study gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from mtlbench.api.study import Study
from mtlbench_reports.charts.chart import Chart, OmittedChart
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.face import families
from mtlbench_reports.charts.sheet import lacking
from mtlbench_reports.charts.style import drawing

_FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
    "png": {"pil_kwargs": {"compress_level": 3}},
}
"""File types with their options, which omit the date of rendering. A PNG at the highest compression would be a tenth
smaller, and take a quarter of the rendering time."""


@dataclass(frozen=True, kw_only=True)
class _ChartFiles:
    """A chart in all file types."""

    name: str
    text: str
    images: Mapping[str, bytes]


def documents(study: Study) -> dict[str, str | bytes]:
    """``charts.txt``, and each chart as ``chart-<name>.svg``, ``.pdf`` and ``.png``."""
    files: dict[str, str | bytes] = {}
    lines = [study.title, *study.notes]
    several = len(study.tables) > 1
    with drawing(families=families()), drawings(study, _drawn) as drawn_tables:
        for table_charts in drawn_tables():
            lines += ["", f"Table {table_charts.number}: {table_charts.table.title}"]
            for chart in table_charts.charts:
                if isinstance(chart, OmittedChart):
                    lines.append(f"- omitted: {chart.title}: {chart.reason}.")
                    continue
                stem = f"chart-{table_charts.number}-{chart.name}" if several else f"chart-{chart.name}"
                files |= {f"{stem}.{kind}": data for kind, data in chart.images.items()}
                lines.append(f"- {stem}: {chart.text}")
    boxes = lacking("".join([*(row.label + "".join(table.tasks) for table in study.tables for row in table.rows)]))
    if boxes:
        lines += ["", f"The font of the charts lacks these characters and draws boxes for them: {boxes}"]
    if not study.tables:
        lines += ["", "There are no cells, so there is nothing to draw."]
    return {"charts.txt": "\n".join(lines) + "\n", **files}


def figures(study: Study) -> dict[str, Figure]:
    """Each chart by its name; with several tables the number of the table comes first: ``2-score-memory``."""
    several = len(study.tables) > 1
    with drawing(families=families()), drawings(study, lambda _, chart: chart, copies=1) as drawn_tables:
        return {
            f"{drawn.number}-{chart.name}" if several else chart.name: chart.figure
            for drawn in drawn_tables()
            for chart in drawn.charts
            if isinstance(chart, Chart)
        }


def _drawn(_: int, chart: Chart) -> _ChartFiles:
    text = f"{chart.title}. {chart.caption}".rstrip()
    return _ChartFiles(name=chart.name, text=text, images={kind: image(chart.figure, kind) for kind in _FORMATS})


def image(figure: Figure, kind: str) -> bytes:
    """The figure as ``svg``, ``pdf`` or ``png``."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, **_FORMATS[kind])
    return out.getvalue()
