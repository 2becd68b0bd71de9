"""How tasks of different sizes share a batch, as words."""

from __future__ import annotations

from mtlbench.errors import RequestError, did_you_mean


def parse_mixing(words: str) -> tuple[str, float | None]:
    """``"temperature:2"`` to ``("temperature", 2.0)``.

    Raises:
        RequestError: unknown mixing, or a missing or impossible number.
    """
    name, colon, number = words.partition(":")
    plain, numbered = ("proportional", "uniform"), ("temperature", "capped")
    if name in plain and not colon:
        return name, None
    if name not in (*plain, *numbered):
        raise RequestError(f"Unknown mixing {words!r}. {did_you_mean(name, (*plain, *numbered))}")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name in plain or not 0 < value < float("inf"):
        raise RequestError(
            f"Mixing {words!r} cannot be read. Write proportional, uniform, temperature:T or capped:ROWS, T and ROWS above 0."
        )
    return name, value
