"""Numbers that a paper states outside its tables, and whether they follow from those they are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mtlbench.errors import DataError
from mtlbench.published.paper import AuditFinding, PublishedClaim, PublishedTable

BEST_GAINS = ("best average gain", "best task gain")
_WAYS: Mapping[str, tuple[Callable[..., float], str]] = {
    "share": (lambda part, whole: 100 * part / whole, "{} of {}"),
    "product": (lambda *factors: math.prod(factors), " x "),
    "sum": (lambda *terms: math.fsum(terms), " + "),
    "difference": (lambda before, after: after - before, "from {} to {}"),
    "gain": (lambda before, after: 100 * (after - before) / before, "from {} to {}"),
}
WAYS = (*_WAYS, *BEST_GAINS)
"""``share`` (first of second, in percent), ``product``, ``sum``, ``difference`` (second minus first), ``gain`` (from
first to second, in percent), or a best gain of a method over another row of a table, in points or in percent."""
_NUMBER = re.compile(r"(-?\d+(?:,\d{3})*)(?:\.(\d+))?([KMB]?)")
_SUFFIX = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True, kw_only=True)
class PrintedNumber:
    """A number as printed."""

    value: float
    step: float
    """One unit of its last digit."""
    exact: bool
    """Whether it is a count: a whole number written out. Others are rounded, to half a unit of their last digit."""

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number that is printed so."""
        half = 0.0 if self.exact else self.step / 2
        return self.value - half, self.value + half


def read_number(text: str) -> PrintedNumber:
    """``1,320``, ``13.1``, ``1.3M`` or ``7B``.

    Raises:
        DataError: it is none of these.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is no number as printed, such as '1,320', '13.1', '1.3M' or '7B'.")
    whole, decimals, suffix = match.group(1).replace(",", ""), match.group(2) or "", match.group(3)
    scale = _SUFFIX[suffix]
    return PrintedNumber(
        value=float(f"{whole}.{decimals}" if decimals else whole) * scale,
        step=10.0 ** -len(decimals) * scale,
        exact=not decimals and not suffix,
    )


def check_claim(claim: PublishedClaim, where: str) -> None:
    """Refuse a claim that cannot be audited.

    Raises:
        DataError: a number cannot be read, or there are too few of them.
    """
    if not claim.follows:
        return
    try:
        numbers = [] if claim.follows in BEST_GAINS else [read_number(text) for text in claim.of]
        read_number(claim.value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    two = claim.follows in ("share", "difference", "gain")
    if not claim.of or (two and len(numbers) != 2) or (claim.follows in ("share", "gain") and not numbers[-two].value):
        raise DataError(f"{where}: a {claim.follows} cannot be computed of {list(claim.of)}.")


def claim_findings(claim: PublishedClaim, tables: Sequence[PublishedTable]) -> Iterator[AuditFinding]:
    """A finding where a claim does not follow: where it is farther from what it follows from than rounding explains."""
    if claim.follows in BEST_GAINS:
        yield from _best_gain(claim, tables)
    elif claim.follows:
        compute, words = _WAYS[claim.follows]
        numbers = [read_number(text) for text in claim.of]
        printed = read_number(claim.value)
        possible = [compute(*ends) for ends in product(*(number.ends for number in numbers))]
        if min(possible) - printed.step * (1 + 1e-9) <= printed.value <= max(possible) + printed.step * (1 + 1e-9):
            return
        exactly = compute(*(number.value for number in numbers))
        formula = words.format(*claim.of) if "{}" in words else words.join(claim.of)
        yield AuditFinding(
            check="claim",
            tables=(claim.where,),
            what=f"{claim.what} is printed as {_with_unit(claim, claim.value)}; {formula} is "
            f"{_with_unit(claim, _rounded(exactly, printed.step))}.",
        )


@dataclass(frozen=True, kw_only=True)
class _Gain:
    size: float
    kind: str
    between: str


def _best_gain(claim: PublishedClaim, tables: Sequence[PublishedTable]) -> Iterator[AuditFinding]:
    """Whether a gain is that of a method over another row in any table: of the average, or of a task."""
    printed = read_number(claim.value)
    gains = list(_gains(set(claim.of), tables, averages=claim.follows == BEST_GAINS[0]))
    nearest = min(gains, key=lambda gain: abs(gain.size - printed.value), default=None)
    if nearest is None or abs(nearest.size - printed.value) <= printed.step * (1 + 1e-9):
        return
    yield AuditFinding(
        check="claim",
        tables=(claim.where,),
        what=f"{claim.what} is printed as {_with_unit(claim, claim.value)}; none of {len(gains):,} differences of two "
        f"rows gives it. The nearest is {_rounded(nearest.size, printed.step)} {nearest.kind}, {nearest.between}.",
    )


def _gains(methods: set[str], tables: Sequence[PublishedTable], *, averages: bool) -> Iterator[_Gain]:
    for table in tables:
        names = ["average"] if averages else [column.name for column in table.columns]
        cells = [(row, [row.average] if averages else list(row.values)) for row in table.rows]
        for row, values in cells:
            if (row.method or "").partition("[")[0] not in methods:
                continue
            for other, others in cells:
                for name, a, b in zip(names, values, others, strict=True):
                    if other is row or other.backbone != row.backbone or a is None or not b:
                        continue
                    between = f"of {row.name} over {other.name} on {name} in {table.name}"
                    yield _Gain(size=table.percent(a - b), kind="points", between=between)
                    yield _Gain(size=100 * (a - b) / b, kind="percent", between=between)


def _with_unit(claim: PublishedClaim, number: str) -> str:
    return f"{number} {claim.unit}".rstrip()


def _rounded(value: float, step: float) -> str:
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
