"""The history of a search as an SVG drawing."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.tuning.trials import Trial

_WIDTH, _HEIGHT, _LEFT, _BELOW, _EDGE = 640, 320, 56, 44, 16
_INK, _LINE, _DOT = "#444", "#0072b2", "#d55e00"


def history_svg(trials: Sequence[Trial], *, title: str) -> str | None:
    """One dot for each complete trial and a line of the best score so far; ``None`` without a complete trial."""
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    if not scored:
        return None
    values = [score for _, score in scored]
    low, high = min(values), max(values)
    low, high = (low - 1, high + 1) if low == high else (low, high)
    last = max(1, max(trial.number for trial in trials))

    def x(number: float) -> float:
        return round(_LEFT + number / last * (_WIDTH - _LEFT - _EDGE), 1)

    def y(score: float) -> float:
        return round(_EDGE + (high - score) / (high - low) * (_HEIGHT - _BELOW - 2 * _EDGE), 1)

    best, points = values[0], [f"{x(scored[0][0])},{y(values[0])}"]
    for number, score in scored[1:]:
        points.append(f"{x(number)},{y(best)}")
        if score > best:
            best = score
            points.append(f"{x(number)},{y(best)}")
    points.append(f"{x(last)},{y(best)}")
    base = _HEIGHT - _BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}">',
        f"<title>{_escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_LEFT - 8},{_EDGE}V{base}H{_WIDTH - _EDGE}" fill="none" stroke="{_INK}"/>',
        *(f'<text x="{_LEFT - 12}" y="{y(v) + 4}" text-anchor="end">{v:.1f}</text>' for v in (low, high)),
        *(f'<text x="{x(n)}" y="{base + 16}" text-anchor="middle">{n}</text>' for n in (0, last)),
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{base + 34}" text-anchor="middle">trial; dots: average on the tuning '
        "rows in percent; line: best so far</text>",
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{_LINE}" stroke-width="2"/>',
        *(f'<circle cx="{x(n)}" cy="{y(score)}" r="3.5" fill="{_DOT}"/>' for n, score in scored),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
