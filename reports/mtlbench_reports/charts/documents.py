"""Charts as files: the same study gives the same bytes."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

from mtlbench.results.tables import Study
from mtlbench_reports.charts.chart import LeftOut
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.face import families
from mtlbench_reports.charts.sheet import lacking
from mtlbench_reports.charts.style import drawing

_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}
"""Endings, with what keeps the day of the rendering out of the file."""


def documents(study: Study) -> dict[str, str | bytes]:
    """``charts.txt``, and each chart as ``chart-<name>.svg``, ``.pdf`` and ``.png``."""
    files: dict[str, str | bytes] = {}
    told = [study.title, *study.notes]
    with drawing(families=families()):
        for drawn in drawings(study):
            several = len(study.tables) > 1
            told += ["", f"Table {drawn.number}: {drawn.table.title}"]
            for chart in drawn.charts:
                if isinstance(chart, LeftOut):
                    told.append(f"- left out: {chart.title}: {chart.reason}.")
                    continue
                stem = f"chart-{drawn.number}-{chart.name}" if several else f"chart-{chart.name}"
                files |= {f"{stem}.{kind}": image(chart.figure, kind) for kind in _UNDATED}
                told.append(f"- {stem}: {chart.title}. {chart.caption}".rstrip())
    boxes = lacking("".join([*(row.label + "".join(table.tasks) for table in study.tables for row in table.rows)]))
    if boxes:
        told += ["", f"The font of the charts lacks these letters and draws boxes for them: {boxes}"]
    if not study.tables:
        told += ["", "There are no cells, so there is nothing to draw."]
    return {"charts.txt": "\n".join(told) + "\n", **files}


def image(figure: Figure, kind: str) -> bytes:
    """The figure as ``svg``, ``pdf`` or ``png``."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, metadata=_UNDATED[kind])
    return out.getvalue()
