"""Charts as files: the same study gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from mtlbench.api.study import Study
from mtlbench_reports.charts.chart import Chart, LeftOut
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.face import families
from mtlbench_reports.charts.sheet import lacking
from mtlbench_reports.charts.style import drawing

_TOLD: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
    "png": {"pil_kwargs": {"compress_level": 3}},
}
"""Endings, with what keeps the day of the rendering out of the file; the highest compression of a PNG saves a tenth of
its size and takes a quarter of its time."""


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A chart in all its forms."""

    name: str
    words: str
    images: Mapping[str, bytes]


def documents(study: Study) -> dict[str, str | bytes]:
    """``charts.txt``, and each chart as ``chart-<name>.svg``, ``.pdf`` and ``.png``."""
    files: dict[str, str | bytes] = {}
    told = [study.title, *study.notes]
    several = len(study.tables) > 1
    with drawing(families=families()), drawings(study, _drawn) as found:
        for drawn in found():
            told += ["", f"Table {drawn.number}: {drawn.table.title}"]
            for chart in drawn.charts:
                if isinstance(chart, LeftOut):
                    told.append(f"- left out: {chart.title}: {chart.reason}.")
                    continue
                stem = f"chart-{drawn.number}-{chart.name}" if several else f"chart-{chart.name}"
                files |= {f"{stem}.{kind}": data for kind, data in chart.images.items()}
                told.append(f"- {stem}: {chart.words}")
    boxes = lacking("".join([*(row.label + "".join(table.tasks) for table in study.tables for row in table.rows)]))
    if boxes:
        told += ["", f"The font of the charts lacks these letters and draws boxes for them: {boxes}"]
    if not study.tables:
        told += ["", "There are no cells, so there is nothing to draw."]
    return {"charts.txt": "\n".join(told) + "\n", **files}


def _drawn(_: int, chart: Chart) -> _Drawn:
    words = f"{chart.title}. {chart.caption}".rstrip()
    return _Drawn(name=chart.name, words=words, images={kind: image(chart.figure, kind) for kind in _TOLD})


def image(figure: Figure, kind: str) -> bytes:
    """The figure as ``svg``, ``pdf`` or ``png``."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, **_TOLD[kind])
    return out.getvalue()
