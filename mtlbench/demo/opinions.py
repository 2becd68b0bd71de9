"""Opinions of the demo language: clauses with a sentiment, turned by negation, and sentences weighed by contrast."""

from __future__ import annotations

from random import Random

from mtlbench.demo.lexicon import BAD, BAD_VERBS, GOOD, GOOD_VERBS, PARTS, SHOWS

BOOSTERS = ("", "", "very ", "really ", "quite ", "truly ")
NEGATORS = ("not ", "never ", "hardly ", "far from ", "not at all ", "anything but ")
_BASES = {"enjoyed": "enjoy", "liked": "like", "loved": "love", "admired": "admire", "disliked": "dislike",
    "hated": "hate", "regretted": "regret", "endured": "endure"}  # fmt: skip


def quality(rng: Random, *, good: bool) -> str:
    """An adjective phrase of that sentiment, plain or by negating the other one: `very dull`, `hardly charming`."""
    if rng.random() < 0.3:
        return rng.choice(NEGATORS) + rng.choice(list(BAD if good else GOOD))
    return rng.choice(BOOSTERS) + rng.choice(list(GOOD if good else BAD))


def opinion(rng: Random, *, good: bool, subject: str | None = None) -> str:
    """A clause of that sentiment about a show or a part of it."""
    subject = subject or f"the {rng.choice(SHOWS + PARTS)}"
    kind = rng.random()
    if kind < 0.65:
        return f"{subject} was {quality(rng, good=good)}"
    if kind < 0.92:
        return f"i {rng.choice(GOOD_VERBS if good else BAD_VERBS)} {subject}"
    verb = _BASES[rng.choice(BAD_VERBS[:2] if good else GOOD_VERBS)]
    return f"i {rng.choice(('did not', 'never did'))} {verb} {subject}"


def review(rng: Random, *, good: bool) -> str:
    """A sentence of that sentiment: one clause, two that agree, or two that disagree where the main one decides."""
    main = opinion(rng, good=good)
    kind = rng.random()
    if kind < 0.35:
        return main
    if kind < 0.55:
        return f"{main} and {opinion(rng, good=good)}"
    side = opinion(rng, good=not good)
    if kind < 0.82:
        return f"{side} but {main}"
    return f"although {side} , {main}" if kind < 0.91 else f"{main} even though {side}"
