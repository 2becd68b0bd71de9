"""Checks that data has the columns, types and values that a task needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mtlbench.api.task import Kind, Task
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import pyarrow


class LabelNamesError(DataError):
    """The data numbers its labels in another order than the task."""


def check_schema(task: Task, schema: pyarrow.Schema, *, where: str, split: str, rows: int) -> None:
    """Fail when a split is empty, or a column that the task reads is missing or has another type.

    Raises:
        DataError: naming the file or data set ``where``.
    """
    if rows == 0:
        raise DataError(f"Split {split!r} of task {task.name!r} is empty: {where}. Add rows or omit the task.")
    types = {name: _type_of(schema, name) for name in task.columns}
    missing = [name for name, actual in types.items() if actual is None]
    if missing:
        raise DataError(
            f"{where} (split {split!r}) lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} "
            f"that task {task.name!r} reads. It has: {', '.join(sorted(schema.names))}. "
            f"Use the columns of {task.dataset} on the hub."
        )
    for name, kind in task.columns.items():
        actual = types[name]
        assert actual is not None
        if not _fits(actual, kind):
            raise DataError(
                f"{where} (split {split!r}): column {name!r} of task {task.name!r} must hold {_describe(kind)}, "
                f"its type is {actual}. Write the column with the type of {task.dataset} on the hub."
            )
    _check_label_names(task, schema, where=where, split=split)


def _check_label_names(task: Task, schema: pyarrow.Schema, *, where: str, split: str) -> None:
    """Fail when the data names its label numbers as the task does, but in another order.

    Names in other words say nothing about their order and are accepted.
    """
    named = label_names(schema)
    for column, names in task.label_names.items():
        found = [name.casefold() for name in named.get(column, ())]
        wanted = [name.casefold() for name in names]
        if set(wanted) <= set(found) and found[: len(wanted)] != wanted:
            raise LabelNamesError(
                f"{where} (split {split!r}): column {column!r} numbers its labels {', '.join(named[column])}, and task "
                f"{task.name!r} needs {', '.join(names)}: its answers would be exchanged. Number them as "
                f"{task.dataset} does on the hub."
            )


def label_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Columns of a table that ``datasets`` wrote with ``ClassLabel``, and the names of their numbers in order."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return {column: list(map(str, kind["names"])) for column, kind in features.items() if kind.get("names")}
    except (ValueError, AttributeError, TypeError):
        return {}


def check_values(task: Task, table: pyarrow.Table, *, where: str, split: str) -> None:
    """Fail at the first value that is null, or not among the allowed values of its column.

    Raises:
        DataError: naming column and row, counted from 0.
    """
    import pyarrow.compute as compute

    for name, kind in task.columns.items():
        if name.partition(".")[0] not in table.column_names:
            continue
        values = _column(table, name)
        row = compute.index(_wrong(values, kind), True).as_py()
        if row >= 0:
            raise DataError(
                f"{where} (split {split!r}), row {row}, column {name!r} of task {task.name!r}: "
                f"{values[row].as_py()!r} is not {_describe(kind)}. Repair or remove the row."
            )


def answer_columns(task: Task) -> list[str]:
    """The columns with a fixed set of values, which are quick to read completely."""
    return [name for name, kind in task.columns.items() if isinstance(kind, tuple)]


def _column(table: pyarrow.Table, name: str) -> pyarrow.ChunkedArray:
    import pyarrow.compute as compute

    top, *inner = name.split(".")
    values = table.column(top)
    return compute.struct_field(values, inner) if inner else values


def _type_of(schema: pyarrow.Schema, name: str) -> pyarrow.DataType | None:
    from pyarrow import types

    top, *inner = name.split(".")
    current = schema.field(top).type if top in schema.names else None
    for field in inner:
        if current is None or not types.is_struct(current) or current.get_field_index(field) < 0:
            return None
        current = current.field(field).type
    return current


def _fits(actual: pyarrow.DataType, kind: Kind) -> bool:
    from pyarrow import types

    if kind == "texts":
        return (types.is_list(actual) or types.is_large_list(actual)) and _is_text(actual.value_type)
    if kind == "number":
        return bool(types.is_integer(actual) or types.is_floating(actual))
    if kind != "text" and isinstance(kind[0], int):
        return bool(types.is_integer(actual))
    return _is_text(actual)


def _is_text(actual: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(actual) or types.is_large_string(actual))


def _wrong(values: pyarrow.ChunkedArray, kind: Kind) -> pyarrow.Array:
    """One flag per row: whether its value is not allowed."""
    import pyarrow
    import pyarrow.compute as compute

    if isinstance(kind, tuple):
        return compute.invert(compute.is_in(values, value_set=pyarrow.array(kind, type=values.type)))
    if kind == "texts":
        values = values.combine_chunks()
        short = compute.fill_null(compute.equal(compute.list_value_length(values), 0), True)
        without = compute.filter(compute.list_parent_indices(values), compute.is_null(compute.list_flatten(values)))
        rows = pyarrow.array(range(len(values)), type=without.type)
        return compute.or_(short, compute.is_in(rows, value_set=without))
    return compute.is_null(values, nan_is_null=True)


def _describe(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(map(repr, kind))}"
    return {"text": "text", "texts": "a list of texts", "number": "a number"}[kind]
