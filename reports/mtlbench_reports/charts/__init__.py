"""Charts of a study as SVG, PDF and PNG, with ``charts.txt`` saying what was drawn and what was left out, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mtlbench import Report, hookimpl

if TYPE_CHECKING:
    from mtlbench.api.study import Study


class Charts(Report):
    """Every chart that the study has data for; with several tables, file names carry the number of the table."""

    name = "charts"

    def render(self, study: Study) -> Mapping[str, str | bytes]:
        from mtlbench_reports.charts.documents import documents  # matplotlib: only when charts are asked for

        return documents(study)


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Charts()]
