"""A study as notebooks use it: tables, frames of pandas and charts of what run folders hold."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api import study as values
from mtlbench.api.record import Record
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.text import seed_list

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mtlbench.results.data.score_table import ScoreTable
    from mtlbench.results.data.tidy import Column
    from mtlbench.store.several import Results

SAMPLE = (
    "key",
    "task",
    "doc_id",
    "doc_hash",
    "gold",
    "gold_index",
    "prediction",
    "loglikelihoods",
    "correct",
    "metric_values",
)
"""Columns of a file of samples."""
DRAWS = 1000
"""Resamples of the examples behind tests and intervals."""
_DTYPES = {"text": "object", "integer": "Int64", "number": "float64"}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Study(values.Study):
    """The tables of run folders, as reports get them, with their numbers as frames: one row for each observation.

    The columns of every frame are described in docs/schemas.md and are those of the csv files. In a notebook, a study
    shows its tables.
    """

    results: Results

    @classmethod
    def of(cls, study: values.Study, results: Results) -> Study:
        """The study of ``results``, as it was computed."""
        return cls(**{field.name: getattr(study, field.name) for field in fields(study)}, results=results)

    def scores(self) -> pd.DataFrame:
        """One row for each cell and task, in percent; one row with the reason for a cell without scores."""
        return self._tidy("scores")

    def metrics(self) -> pd.DataFrame:
        """One row for each cell, task and metric of lm-eval, in percent."""
        return self._tidy("metrics")

    def costs(self) -> pd.DataFrame:
        """One row for each finished cell: parameters, seconds, bytes."""
        return self._tidy("costs")

    def differences(self) -> pd.DataFrame:
        """One row for each row of a table and task: mean difference to the reference, 95 % interval, corrected p."""
        return self._tidy("differences")

    def foreign_scores(self) -> pd.DataFrame:
        """One row for each number that another program measured: those of ``load(..., foreign=)``, in percent."""
        return self._tidy("foreign")

    def samples(self, *, variant: str | None = None, task: str | None = None, seed: int | None = None) -> pd.DataFrame:
        """One row for each cell, task and evaluation example: what was answered and what is right.

        Args:
            variant: Only of this method, as tables name it without versions.
            task: Only of this task, by its full name.
            seed: Only of this seed.

        Raises:
            RequestError: nothing here has that variant, task or seed.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        frames = []
        for record in self._done(variant=variant, seed=seed):
            data = self.results.checked_samples(record)
            if data is None:
                continue
            frame = pq.read_table(io.BytesIO(data)).to_pandas().drop(columns="key", errors="ignore")
            frame = frame if task is None else frame[frame["task"] == task]
            for name, value in (("seed", record.cell.seed), ("variant", record.cell.variant), ("key", record.key)):
                frame.insert(0, name, value)
            frames.append(frame)
        known = sorted({name for record in self._done() for name in record.scores})
        if task is not None and task not in known:
            raise RequestError(f"No finished cell here is scored on {task!r}. {did_you_mean(task, known)}")
        columns = ["key", "variant", "seed", *(field for field in SAMPLE if field != "key")]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def losses(self, *, variant: str | None = None, seed: int | None = None) -> pd.DataFrame:
        """One row for each logged step and task: mean loss over the task's examples in that step.

        The task ``all`` is the mean over all examples of the step. At most about 200 steps of a cell are logged.

        Args:
            variant: Only of this method, as tables name it without versions.
            seed: Only of this seed.

        Raises:
            RequestError: nothing here has that variant or seed.
        """
        import pandas as pd

        columns = ["key", "variant", "seed", "step", "seconds", "task", "loss"]
        lines = [
            (record.key, record.cell.variant, record.cell.seed, line["step"], line["seconds"], task, loss)
            for record in self._done(variant=variant, seed=seed)
            for line in self.results.steps(record.key)
            if "step" in line
            for task, loss in {"all": line["loss"], **_mapping(line["tasks"])}.items()
        ]
        return pd.DataFrame(lines, columns=columns)

    def table(self, number: int = 1) -> ScoreTable:
        """A table of scores with the marks of the reports; a notebook shows it, ``print`` writes it as text.

        Raises:
            RequestError: there is no table of this number.
        """
        from mtlbench.results.data.score_table import score_table

        return score_table(self._table(number))

    def charts(self) -> tuple[str, ...]:
        """Names that :meth:`chart` takes, of all tables."""
        return tuple(self._figures)

    def chart(self, name: str, *, table: int | None = None) -> Figure:
        """A chart of the report ``charts`` as a figure of matplotlib, such as ``score-memory``.

        Args:
            table: Number of the table, where several have a chart of this name.

        Raises:
            RequestError: the study has no data for such a chart, or there is none of this name.
        """
        known = self._figures
        wanted = name if table is None or len(self.tables) == 1 else f"{table}-{name}"
        if table is not None:
            self._table(table)
        if wanted not in known:
            raise RequestError(f"This study has no chart {wanted!r}. {did_you_mean(wanted, known)}")
        return known[wanted]

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items() if number)
        return f"<Study {self.title!r}: {len(self.tables)} tables, cells: {counts or 'none'}>"

    def __str__(self) -> str:
        from mtlbench.results.data.score_table import study_lines

        return "\n".join([self.title, *study_lines(self)])

    def _repr_html_(self) -> str:
        from mtlbench.results.data.score_table import study_html

        return study_html(self)

    def _tidy(self, name: str) -> pd.DataFrame:
        from mtlbench.results.data.tidy import OF_A_STUDY, tidy

        return _frame(tidy(self, name), OF_A_STUDY[name])

    def _done(self, *, variant: str | None = None, seed: int | None = None) -> Iterator[Record]:
        """Finished records in the order of the tables."""
        done = {r.key: r for table in self.tables for row in table.rows for r in row.records if r.status == "ok"}
        known = {record.cell.variant for record in done.values()}
        if variant is not None and variant not in known:
            raise RequestError(f"No finished cell here is of {variant!r}. {did_you_mean(variant, known)}")
        found = [record for record in done.values() if variant in (None, record.cell.variant)]
        seeds = sorted({record.cell.seed for record in found})
        if seed is not None and seed not in seeds:
            raise RequestError(f"No finished cell here has the seed {seed}. Seeds: {seed_list(seeds) or 'none'}.")
        yield from (record for record in found if seed in (None, record.cell.seed))

    def _table(self, number: int) -> values.Table:
        if not 1 <= number <= len(self.tables):
            titles = "; ".join(f"{at}: {table.title}" for at, table in enumerate(self.tables, start=1))
            raise RequestError(f"There is no table {number}. {f'Known: {titles}.' if titles else 'There are none.'}")
        return self.tables[number - 1]

    @cached_property
    def _figures(self) -> Mapping[str, Figure]:
        from mtlbench.plugins import load_report

        return load_report("charts").figures(self)


def load(
    folder: str | Path,
    *more: str | Path,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    exclude: Sequence[str] = (),
    foreign: Sequence[str | Path] = (),
    reference: str | None = None,
    title: str = "",
    bootstrap: int = DRAWS,
) -> Study:
    """The study of one or several run folders, as ``mtlbench report`` computes it. Loads no torch.

    Args:
        folder: A run folder; ``more`` of them, such as those of several machines, make one study.
        methods: Only these methods, variants or cells (starts of their keys).
        tasks: Only tables of these suites or tasks.
        exclude: Not these methods, variants or cells.
        foreign: Result files of lm-eval or of peft's ``method_comparison``, which are shown apart.
        reference: Label of the row that others are compared with; by default ``lora_st``, ``lora`` or the best.
        title: What the study is called.
        bootstrap: Resamples of the examples behind tests and intervals; 0 lets only the seeds vary.

    Raises:
        RequestError: a folder is no run folder, a name is unknown, or the folders must not share tables.
    """
    from mtlbench.commands.shared import run_folder
    from mtlbench.results.data.foreign import read_foreign
    from mtlbench.results.documents import study_in
    from mtlbench.store.several import Selection, read_results

    selection = Selection(methods=_names(methods), tasks=_names(tasks), exclude=_names(exclude))
    stores = [run_folder(Path(path).resolve()) for path in (folder, *more)]  # a notebook may change its directory
    results = read_results(stores, selection=selection)
    rows = read_foreign(map(Path, foreign), tasks={task for cell in results.cells for task in cell.scored})
    study = study_in(results, reference=reference, draws=bootstrap, title=title, foreign=rows)
    return Study.of(study, results)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    from mtlbench.commands.shared import names_in

    return names_in("methods", names) if isinstance(names, str) else tuple(names)


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=[column.name for column in columns])
    return frame.astype({column.name: _DTYPES[column.kind] for column in columns})
