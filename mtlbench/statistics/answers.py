"""Stored predictions of a cell, column by column: hundreds of cells are read for one report."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtlbench.api.record import Record
from mtlbench.api.study import Predictions, TaskAnswers

if TYPE_CHECKING:
    from pyarrow import Array, DictionaryArray, StringArray


class StoredPredictions(Protocol):
    """A run folder, as far as predictions are read from it."""

    def checked_samples(self, record: Record) -> bytes | None:
        """The Parquet file of a record's predictions, verified; ``None`` where there is none that can be used."""


Numbers = NDArray[np.float64]
_REPEATED = ["task", "prediction", "metric_values"]
"""Columns of few different texts: read as numbers of texts, as the file holds them."""
_COLUMNS = ["task", "doc_hash", "prediction", "loglikelihoods", "correct", "metric_values"]
_UNPARSED = ("[invalid]", "[no_match]")
"""What lm-eval's filters give where they find no answer in a text."""
_NO_CHOICES, _UNDEFINED = -2, -1
_log = logging.getLogger(__name__)


def answers_in(store: StoredPredictions, records: Iterable[Record]) -> Predictions:
    """The stored answers of the finished ones of ``records``, each read when it is first asked for.

    Predictions that are not those a record was made with go to quarantine and count as none; so do, with a line in the
    log, those that cannot be understood.
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
    table = file.read(columns=_COLUMNS, use_threads=False)  # one file is small: threads cost more than they gain
    column = {name: table.column(name).combine_chunks() for name in _COLUMNS}
    names = column["task"]
    codes = np.from_dlpack(names.indices)  # asarray would import pandas
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    known = names.dictionary.to_pylist()
    if len(starts) - 1 != len(known):
        raise ValueError("the rows of a task are not together")
    likeliest, undefined = _likeliest(column["loglikelihoods"])
    texts = column["prediction"]
    predicted = np.from_dlpack(texts.indices)
    unparsed = np.array([not t.strip() or t.strip() in _UNPARSED for t in texts.dictionary.to_pylist()])[predicted]
    correct = np.from_dlpack(column["correct"].cast("int8"))
    items = _Items(column["metric_values"])
    found = {}
    for start, end in pairwise(starts):
        own = slice(start, end)
        generated = bool((likeliest[own] == _NO_CHOICES).any())
        given = predicted[own] if generated else likeliest[own]
        found[known[codes[start]]] = TaskAnswers(
            documents=_digest(column["doc_hash"], start, end),
            count=end - start,
            items=items.of(own),
            constant=bool((given == given[0]).all()) and end - start > 1 and not correct[own].all(),
            unparsed=int(unparsed[own].sum()) if generated else 0,
            undefined=0 if generated else int(undefined[own].sum()),
        )
    return found


def _likeliest(column: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Place of the likeliest choice of each row, and whether one of its likelihoods is no number.

    Rows without choices, and so without likelihoods, stand at :data:`_NO_CHOICES`.
    """
    offsets = np.from_dlpack(column.offsets)
    lengths = np.diff(offsets)
    places = np.full(len(lengths), _NO_CHOICES)
    undefined = np.zeros(len(lengths), dtype=np.bool_)
    held = np.flatnonzero(lengths)
    if not len(held):
        return places, undefined
    values = np.from_dlpack(column.flatten().cast("float64"))
    firsts = offsets[held] - offsets[0]
    highest = np.maximum.reduceat(values, firsts)
    undefined[held] = np.isnan(highest)
    hits = np.flatnonzero(values == np.repeat(highest, lengths[held]))
    of_row = np.searchsorted(firsts, hits, side="right") - 1
    places[held] = _UNDEFINED
    rows, first = np.unique(of_row, return_index=True)
    places[held[rows]] = hits[first] - firsts[rows]
    return places, undefined


def _digest(hashes: StringArray, start: int, end: int) -> str:
    """Of the documents' own digests, one after another."""
    _, offsets, data = hashes.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[hashes.offset + start : hashes.offset + end + 1]
    return hashlib.sha256(memoryview(data)[ends[0] : ends[-1]]).hexdigest()


class _Items:
    """What metrics aggregate, each text read once."""

    def __init__(self, column: DictionaryArray) -> None:
        self._codes = np.from_dlpack(column.indices)
        self._told: list[dict[str, Any]] = [json.loads(text) for text in column.dictionary.to_pylist()]

    def of(self, rows: slice) -> dict[str, Numbers]:
        """Metric to items of some rows; a metric of texts or of lists of any length is left out."""
        own = self._codes[rows]
        used = np.flatnonzero(np.bincount(own, minlength=len(self._told)))
        place = np.zeros(len(self._told), dtype=np.intp)
        place[used] = np.arange(len(used))
        codes, told = place[own], [self._told[code] for code in used]
        found = {}
        for metric in told[0]:
            try:
                values = np.array([one[metric] for one in told], dtype=np.float64)
            except (KeyError, TypeError, ValueError):
                continue
            if values.ndim <= 2:
                found[metric] = values[codes]
        return found
