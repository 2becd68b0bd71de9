"""Whether rows hold what a task reads, said by file, column and row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlbench.api.task import Kind, Task
from mtlbench.errors import DataError

if TYPE_CHECKING:
    import pyarrow


def check_schema(task: Task, schema: pyarrow.Schema, *, where: str, split: str, rows: int) -> None:
    """Fail when a split is empty, or a column that the task reads is missing or of another type.

    Raises:
        DataError: ``where`` says which file or data set it is.
    """
    if rows == 0:
        raise DataError(f"Split {split!r} of task {task.name!r} is empty: {where}. Give it rows or leave the task out.")
    found = {name: _type_of(schema, name) for name in task.columns}
    missing = [name for name, held in found.items() if held is None]
    if missing:
        raise DataError(
            f"{where} (split {split!r}) lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} "
            f"that task {task.name!r} reads. It has: {', '.join(sorted(schema.names))}. "
            f"Use the columns of {task.dataset} on the hub."
        )
    for name, kind in task.columns.items():
        held = found[name]
        assert held is not None
        if not _fits(held, kind):
            raise DataError(
                f"{where} (split {split!r}): column {name!r} of task {task.name!r} must hold {_told(kind)}, "
                f"its type is {held}. Write the column with the type of {task.dataset} on the hub."
            )


def check_values(task: Task, table: pyarrow.Table, *, where: str, split: str) -> None:
    """Fail at the first value of a column of ``table`` that is none, or not among the values the column may hold.

    Raises:
        DataError: with column and row, counted from 0.
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
                f"{values[row].as_py()!r} is not {_told(kind)}. Repair or remove the row."
            )


def answer_columns(task: Task) -> list[str]:
    """The columns that may hold a few values only: quick to read whole."""
    return [name for name, kind in task.columns.items() if isinstance(kind, tuple)]


def _column(table: pyarrow.Table, name: str) -> pyarrow.ChunkedArray:
    import pyarrow.compute as compute

    top, *inner = name.split(".")
    values = table.column(top)
    return compute.struct_field(values, inner) if inner else values


def _type_of(schema: pyarrow.Schema, name: str) -> pyarrow.DataType | None:
    from pyarrow import types

    top, *inner = name.split(".")
    found = schema.field(top).type if top in schema.names else None
    for part in inner:
        if found is None or not types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(part).type
    return found


def _fits(held: pyarrow.DataType, kind: Kind) -> bool:
    from pyarrow import types

    if kind == "texts":
        return (types.is_list(held) or types.is_large_list(held)) and _is_text(held.value_type)
    if kind == "number":
        return bool(types.is_integer(held) or types.is_floating(held))
    if kind != "text" and isinstance(kind[0], int):
        return bool(types.is_integer(held))
    return _is_text(held)


def _is_text(held: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(held) or types.is_large_string(held))


def _wrong(values: pyarrow.ChunkedArray, kind: Kind) -> pyarrow.Array:
    """One flag per row."""
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


def _told(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(map(repr, kind))}"
    return {"text": "text", "texts": "a list of texts", "number": "a number"}[kind]
