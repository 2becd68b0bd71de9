"""Charts of a study as SVG, PDF and PNG, with a list in ``charts.txt`` of charts drawn and charts omitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mtlbench import Report, hookimpl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtlbench.api.study import Study


class Charts(Report):
    """Every chart that the study has data for; with several tables, file names contain the number of the table."""

    name = "charts"

    def render(self, study: Study) -> Mapping[str, str | bytes]:
        from mtlbench_reports.charts.documents import documents  # imports matplotlib

        return documents(study)

    def figures(self, study: Study) -> Mapping[str, Figure]:
        from mtlbench_reports.charts.documents import figures

        return figures(study)


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Charts()]
