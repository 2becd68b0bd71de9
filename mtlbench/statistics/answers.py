"""Stored predictions of a cell, column by column: hundreds of cells are read for one report."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlbench.results.tables import Predictions

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table

Numbers = NDArray[np.float64]
_COLUMNS = ["task", "doc_hash", "prediction", "loglikelihoods", "correct", "metric_values"]
_UNPARSED = ("[invalid]", "[no_match]")
"""What lm-eval's filters give where they find no answer in a text."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Answers:
    """What a cell answered on one task."""

    documents: str
    """Digest of the documents, in order: cells with equal ones answered the same questions."""
    count: int
    items: Mapping[str, Numbers]
    """Metric to what it aggregates: ``[rows]`` or, where that is a tuple of numbers, ``[rows, numbers]``."""
    constant: bool
    """Whether one answer, or the choice at one place, was given to every document though it is not always right."""
    unparsed: int
    """Generated answers without an answer in them."""
    undefined: int
    """Documents with a likelihood that is no number."""


def answers_in(folder: Path) -> Predictions:
    """Reads ``<folder>/<cell key>.parquet``; a file that cannot be read is logged and counts as none."""

    def read(key: str) -> Mapping[str, Answers] | None:
        path = folder / f"{key}.parquet"
        if not path.exists():
            return None
        try:
            return read_answers(path)
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among them
            _log.warning("the predictions in %s cannot be used: %s", path, error)
            return None

    return read


def read_answers(path: Path) -> dict[str, Answers]:
    """Full task name to answers.

    The file's checksum is left to those who use single rows: here every score made from the answers is compared with
    the recorded one.
    """
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(columns=_COLUMNS)
    names = table.column("task").combine_chunks().dictionary_encode()
    codes = np.asarray(names.indices)
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    known = names.dictionary.to_pylist()
    if len(starts) - 1 != len(known):
        raise ValueError("the rows of a task are not together")
    return {known[codes[start]]: _answers(table.slice(start, end - start)) for start, end in pairwise(starts)}


def _answers(rows: Table) -> Answers:
    places, undefined = _places(rows.column("loglikelihoods"))
    predicted = rows.column("prediction").combine_chunks().dictionary_encode()
    correct = np.asarray(rows.column("correct").combine_chunks())
    same = len(predicted.dictionary) == 1 if places is None else bool((places == places[0]).all())
    texts = predicted.dictionary.to_pylist()
    empty = [at for at, text in enumerate(texts) if not text.strip() or text.strip() in _UNPARSED]
    unparsed = int(np.isin(np.asarray(predicted.indices), empty).sum()) if places is None and empty else 0
    hashes = "".join(rows.column("doc_hash").to_pylist())
    return Answers(
        documents=hashlib.sha256(hashes.encode()).hexdigest(),
        count=len(correct),
        items=_items(rows.column("metric_values")),
        constant=same and len(correct) > 1 and not correct.all(),
        unparsed=unparsed,
        undefined=undefined,
    )


def _places(column: ChunkedArray) -> tuple[NDArray[np.intp] | None, int]:
    """Place of the likeliest choice of each row and how many rows have a likelihood that is no number; no places for
    generated answers."""
    likelihoods = column.combine_chunks()
    lengths = np.diff(np.asarray(likelihoods.offsets))
    if not len(lengths) or not lengths.min():
        return None, 0
    values = np.asarray(likelihoods.flatten(), dtype=np.float64)
    grid = np.full((len(lengths), int(lengths.max())), -np.inf)
    grid[np.arange(grid.shape[1]) < lengths[:, None]] = values
    undefined = np.isnan(grid).any(axis=1)
    return np.where(undefined, -1, np.argmax(np.nan_to_num(grid, nan=-np.inf), axis=1)), int(undefined.sum())


def _items(column: ChunkedArray) -> dict[str, Numbers]:
    encoded = column.combine_chunks().dictionary_encode()
    told: list[dict[str, Any]] = [json.loads(text) for text in encoded.dictionary.to_pylist()]
    found = {}
    for metric in told[0]:
        try:
            values = np.array([one[metric] for one in told], dtype=np.float64)
        except (KeyError, TypeError, ValueError):  # a metric of texts or of lists of any length
            continue
        if values.ndim <= 2:
            found[metric] = values[np.asarray(encoded.indices)]
    return found
