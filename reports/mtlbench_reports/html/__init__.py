"""The study as one HTML file that opens from disk and fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mtlbench import Report, hookimpl

if TYPE_CHECKING:
    from mtlbench.api.study import Study


class Html(Report):
    """Tables to sort and filter, charts with values under the pointer, and every record behind its numbers."""

    name = "html"

    def render(self, study: Study) -> Mapping[str, str]:
        from mtlbench_reports.html.page import page  # imports matplotlib

        return {"report.html": page(study)}


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Html()]
