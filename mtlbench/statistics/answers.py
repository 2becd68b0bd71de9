"""Stored predictions of a cell, read column by column, because one report reads hundreds of cells."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtlbench.api.record import Record
from mtlbench.api.study import Calibration, Predictions, TaskAnswers
from mtlbench.statistics.calibration import calibration, right_choices

if TYPE_CHECKING:
    from pyarrow import Array, DictionaryArray, StringArray


class StoredPredictions(Protocol):
    """The interface of a run folder for reading predictions."""

    def checked_samples(self, record: Record) -> bytes | None:
        """The verified Parquet file of a record's predictions; ``None`` where no usable one exists."""


Numbers = NDArray[np.float64]
_REPEATED = ["task", "gold", "prediction", "metric_values"]
"""Columns of few distinct texts: read as dictionary codes, as stored in the file."""
_COLUMNS = ["task", "doc_hash", "gold", "prediction", "loglikelihoods", "correct", "metric_values"]
_RIGHT = "gold_index"
"""Column that earlier versions did not write."""
_UNPARSED = ("[invalid]", "[no_match]")
"""Output of lm-eval's filters where they find no answer in a text."""
_NO_CHOICES, _UNDEFINED = -2, -1
_log = logging.getLogger(__name__)


def answers_in(store: StoredPredictions, records: Iterable[Record]) -> Predictions:
    """The stored answers of the finished ones of ``records``, each read on first access.

    Predictions that differ from those a record was made with are quarantined and count as missing. Predictions that
    cannot be parsed count as missing too, with a line in the log.
    """
    done = {record.key: record for record in records if record.status == "ok"}

    @cache
    def read(key: str) -> dict[str, TaskAnswers] | None:
        if key not in done:
            return None
        try:
            data = store.checked_samples(done[key])
            return None if data is None else read_answers(data)
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among them
            _log.warning("the predictions of %s (%s) cannot be used: %s", done[key].cell.variant, key, error)
            return None

    return read


def read_answers(data: bytes) -> dict[str, TaskAnswers]:
    """Full task name to the answers in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=_REPEATED)
    columns = [*_COLUMNS, *([_RIGHT] if _RIGHT in file.schema_arrow.names else [])]
    table = file.read(columns=columns, use_threads=False)  # small files: threads are slower
    column = {name: table.column(name).combine_chunks() for name in columns}
    names = column["task"]
    codes = np.from_dlpack(names.indices)  # asarray would import pandas
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    known = names.dictionary.to_pylist()
    if len(starts) - 1 != len(known):
        raise ValueError("the rows of a task are not contiguous")
    likeliest, undefined = _likeliest(column["loglikelihoods"])
    texts = column["prediction"]
    predicted = np.from_dlpack(texts.indices)
    unparsed = np.array([not t.strip() or t.strip() in _UNPARSED for t in texts.dictionary.to_pylist()])[predicted]
    correct = np.from_dlpack(column["correct"].cast("int8")) == 1
    calibrations = _Calibrations(column, likeliest, correct)
    items = _Items(column["metric_values"])
    answers = {}
    for start, end in pairwise(starts):
        rows = slice(start, end)
        generated = bool((likeliest[rows] == _NO_CHOICES).any())
        answered = predicted[rows] if generated else likeliest[rows]
        answers[known[codes[start]]] = TaskAnswers(
            documents=_digest(column["doc_hash"], start, end),
            count=end - start,
            items=items.of(rows),
            constant=bool((answered == answered[0]).all()) and end - start > 1 and not correct[rows].all(),
            unparsed=int(unparsed[rows].sum()) if generated else 0,
            undefined=0 if generated else int(undefined[rows].sum()),
            calibration=None if generated or undefined[rows].any() else calibrations.of(rows),
        )
    return answers


def _likeliest(column: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index of the likeliest choice of each row, and whether one of its likelihoods is NaN.

    Rows without choices, and so without likelihoods, have :data:`_NO_CHOICES`.
    """
    offsets = np.from_dlpack(column.offsets)
    lengths = np.diff(offsets)
    positions = np.full(len(lengths), _NO_CHOICES)
    undefined = np.zeros(len(lengths), dtype=np.bool_)
    with_choices = np.flatnonzero(lengths)
    if not len(with_choices):
        return positions, undefined
    values = np.from_dlpack(column.flatten().cast("float64"))
    firsts = offsets[with_choices] - offsets[0]
    highest = np.maximum.reduceat(values, firsts)
    undefined[with_choices] = np.isnan(highest)
    hits = np.flatnonzero(values == np.repeat(highest, lengths[with_choices]))
    of_row = np.searchsorted(firsts, hits, side="right") - 1
    positions[with_choices] = _UNDEFINED
    rows, first = np.unique(of_row, return_index=True)
    positions[with_choices[rows]] = hits[first] - firsts[rows]
    return positions, undefined


class _Calibrations:
    """The calibration of some rows, from the log-likelihoods of their choices."""

    def __init__(self, column: Mapping[str, Any], likeliest: NDArray[np.int64], correct: NDArray[np.bool_]) -> None:
        self._column, self._likeliest, self._correct = column, likeliest, correct
        values = column["loglikelihoods"]
        self._offsets = np.from_dlpack(values.offsets).astype(np.int64)
        self._values: Numbers = np.asarray(np.from_dlpack(values.flatten().cast("float64")), dtype=np.float64)

    def of(self, rows: slice) -> Calibration | None:
        counts = np.diff(self._offsets[rows.start : rows.stop + 1])
        first, last = self._offsets[[rows.start, rows.stop]] - self._offsets[0]
        likelihoods: Numbers = self._values[first:last]
        correct = self._correct[rows]
        return calibration(likelihoods, counts, correct=correct, right=self._right(rows, counts))

    def _right(self, rows: slice, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        if _RIGHT in self._column:
            return np.from_dlpack(self._column[_RIGHT]).astype(np.int64)[rows]
        chosen, correct = self._likeliest[rows], self._correct[rows]
        texts, golds = (self._column[name][rows].to_pylist() for name in ("prediction", "gold"))
        return right_choices(chosen, counts, correct, texts=texts, golds=golds)


def _digest(hashes: StringArray, start: int, end: int) -> str:
    """Digest of the concatenated digests of the documents."""
    _, offsets, data = hashes.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[hashes.offset + start : hashes.offset + end + 1]
    return hashlib.sha256(memoryview(data)[ends[0] : ends[-1]]).hexdigest()


class _Items:
    """The values that metrics aggregate, with each distinct text parsed once."""

    def __init__(self, column: DictionaryArray) -> None:
        self._codes = np.from_dlpack(column.indices)
        self._texts: list[dict[str, Any]] = [json.loads(text) for text in column.dictionary.to_pylist()]

    def of(self, rows: slice) -> dict[str, Numbers]:
        """Metric to items of some rows; metrics whose items are texts or lists of varying length are omitted."""
        codes_of_rows = self._codes[rows]
        used = np.flatnonzero(np.bincount(codes_of_rows, minlength=len(self._texts)))
        renumbered = np.zeros(len(self._texts), dtype=np.intp)
        renumbered[used] = np.arange(len(used))
        codes, texts = renumbered[codes_of_rows], [self._texts[code] for code in used]
        items = {}
        for metric in texts[0]:
            try:
                values = np.array([one[metric] for one in texts], dtype=np.float64)
            except (KeyError, TypeError, ValueError):
                continue
            if values.ndim <= 2:
                items[metric] = values[codes]
        return items
