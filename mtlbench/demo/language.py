"""The skills of the demo language: sentences, and pairs of sentences, with what is so about them by rule.

Every function draws from the `Random` it is given and from nothing else. The pretraining text and the GLUE-shaped tasks
are both made from these draws and never share one: `reserved` decides by the text alone which of the two may use it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from mtlbench.demo.grammar import (
    Event,
    draw_event,
    question,
    question_slots,
    sentence,
    short_answer,
    statement,
    without,
)
from mtlbench.demo.lexicon import ACTIONS, KIND_OF, VERBS, Genre
from mtlbench.demo.relations import COSTS, broaden, change, changes, deny, narrow, reword

Inference = Literal["follows", "open", "clashes"]


@dataclass(frozen=True)
class Compared:
    """Two texts, the kinds of change between them (none: a paraphrase), and their similarity, 0.0 to 5.0."""

    first: str
    second: str
    changed: tuple[str, ...]
    grade: float


@dataclass(frozen=True)
class Inferred:
    """A premise, a hypothesis, and whether it follows, clashes or stays open."""

    premise: str
    hypothesis: str
    label: Inference


@dataclass(frozen=True)
class Asked:
    """A question, a sentence, whether the sentence answers it, and the short answer if so."""

    question: str
    sentence: str
    answer: str | None


def reserved(text: str) -> bool:
    """Whether `text` belongs to the tasks (one in six); no drill of the pretraining text then uses it."""
    return zlib.crc32(text.encode()) % 6 == 0


def surface(event: Event, rng: Random) -> str:
    """The event as a sentence, active or passive, in plain order or with time or place in front."""
    return statement(event, passive=rng.random() < 0.2, front=rng.random() < 0.2)


def compare(rng: Random, genre: Genre, *, count: int | None = None) -> Compared:
    """Two statements with `count` kinds of change between them: any number without `count`, and all for -1."""
    event = draw_event(rng, genre, modifiers=3, people_only=rng.random() < 0.2)
    first = surface(event, rng)
    if count == -1 or (count is None and rng.random() < 0.15):
        return Compared(first, surface(draw_event(rng, genre, modifiers=3), rng), ("all",), 0.0)
    count = rng.choice((0, 0, 1, 1, 1, 2, 2, 3)) if count is None else count
    kinds = _kinds(event, rng, count)
    other = reword(event, rng, times=rng.randint(0, 1) if kinds else rng.randint(1, 2))
    for kind in kinds:
        other = change(other, kind, rng, genre)
    second = surface(other, rng)
    while second == first:
        second = statement(other, passive=rng.random() < 0.5, front=rng.random() < 0.5)
    grade = max(0.0, 5.0 - sum(COSTS[kind] for kind in kinds))
    return Compared(first, second, kinds, round(grade, 1))


def _kinds(event: Event, rng: Random, count: int) -> tuple[str, ...]:
    """`count` kinds of change that keep their meaning together: a swap goes with no other change of the people."""
    kinds = list(changes(event))
    rng.shuffle(kinds)
    if "swap" in kinds[:count]:
        kinds = [kind for kind in kinds if kind not in {"agent", "patient"}]
    if "verb" in kinds[:count]:
        kinds = [kind for kind in kinds if kind != "negation"]
    return tuple(kinds[:count])


def compare_questions(rng: Random, genre: Genre, *, same: bool) -> Compared:
    """Two questions; unless `same`, they ask for another slot or about another event."""
    event = draw_event(rng, genre, modifiers=3)
    slot = rng.choice(question_slots(event))
    first = question(event, slot, passive=rng.random() < 0.2, long=rng.random() < 0.2)
    other = reword(event, rng, times=2)
    changed: tuple[str, ...] = ()
    if not same:
        kinds = [kind for kind in changes(other) if kind not in {slot, "negation", "swap"}]
        kinds = [kind for kind in kinds if not (slot == "patient" and kind == "adjective")]
        if rng.random() < 0.25:
            return Compared(first, question(draw_event(rng, genre, modifiers=3), slot), ("all",), 0.0)
        if rng.random() < 0.35:
            asked = rng.choice([each for each in question_slots(event) if each != slot])
            second = question(other, asked, passive=rng.random() < 0.2, long=rng.random() < 0.2)
            return Compared(first, second, ("asked",), 0.0)
        changed = (rng.choice(kinds),)
        other = change(other, changed[0], rng, genre)
    passive, long = rng.random() < 0.25, rng.random() < 0.5
    second = question(other, slot, passive=passive, long=long)
    if second == first:
        second = question(other, slot, passive=not passive, long=long)
    return Compared(first, second, changed, 0.0 if changed else 5.0)


def infer(rng: Random, genre: Genre, label: Inference) -> Inferred:
    """A premise and a hypothesis in the relation `label`, from events or from quantified sentences."""
    if rng.random() < 0.2:
        return _infer_quantified(rng, genre, label)
    while True:
        event = draw_event(rng, genre, modifiers=3)
        if rng.random() < 0.15:
            event = replace(event, negated=True)
        pair = _infer_event(event, rng, genre, label)
        if pair and pair[0] != pair[1]:
            return Inferred(pair[0], pair[1], label)


def _infer_event(event: Event, rng: Random, genre: Genre, label: Inference) -> tuple[str, str] | None:
    general = broaden(event, rng) if rng.random() < 0.6 else None
    if label == "follows":
        return surface(event, rng), surface(reword(general or event, rng, times=0 if general else 2), rng)
    if label == "clashes":
        base = general if general and general.agent == event.agent else event
        return surface(event, rng), surface(deny(reword(base, rng), rng), rng)
    if general and rng.random() < 0.5:
        return surface(general, rng), surface(reword(event, rng), rng)
    if event.negated or rng.random() < 0.4:
        kind = rng.choice(("agent", "patient", "swap") if event.patient_is_person else ("agent", "patient"))
        return surface(event, rng), surface(change(reword(event, rng), kind, rng, genre), rng)
    added = narrow(event, rng, genre)
    return (surface(event, rng), surface(reword(added, rng), rng)) if added else None


def plural(noun: str) -> str:
    """The plural of a noun."""
    if noun in {"trout", "salmon", "fish"}:
        return noun
    if noun == "person":
        return "people"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


# What follows from each quantifier, and what clashes with it; the rest stays open.
_FOLLOWS = {"all the": ("most", "some", "many"), "most": ("some",), "many": ("some",), "three": ("some",),
    "some": ("some",), "no": ("no",)}  # fmt: skip
_CLASHES = {"all the": ("no",), "most": ("no",), "many": ("no",), "three": ("no",), "some": ("no",),
    "no": ("some", "most", "many", "three", "all the")}  # fmt: skip
_OPEN = {"most": ("all the",), "many": ("all the", "most"), "three": ("all the", "most", "many"),
    "some": ("all the", "many", "three", "most")}  # fmt: skip


def _infer_quantified(rng: Random, genre: Genre, label: Inference) -> Inferred:
    table = {"follows": _FOLLOWS, "clashes": _CLASHES, "open": _OPEN}[label]
    while True:
        quantifier, noun = rng.choice(list(table)), rng.choice(genre.people + genre.animals)
        second, place, action = (
            rng.choice(table[quantifier]),
            f" in the {rng.choice(genre.places)}",
            rng.choice(ACTIONS),
        )
        where, there, general, done = rng.choice(("", place)), "", noun, action
        if label == "open" and rng.random() < 0.4:
            second, done = quantifier, rng.choice([each for each in ACTIONS if each != action])
        if second == "some" and label == "follows" and rng.random() < 0.5:
            general = KIND_OF.get(noun, noun)
        there = where if second != "some" or rng.random() < 0.5 else ""
        if quantifier == second == "no" and not where:
            there = place
        premise = f"{quantifier} {plural(noun)}{where} {VERBS[action].past}"
        hypothesis = f"{second} {plural(general)}{there} {VERBS[done].past}"
        if premise != hypothesis:
            return Inferred(sentence(premise), sentence(hypothesis), label)


def ask(rng: Random, genre: Genre, *, answered: bool) -> Asked:
    """A question and a sentence that answers it, or one with much the same words that does not."""
    while True:
        event = draw_event(rng, genre, modifiers=3)
        slot = rng.choice(question_slots(event)[-2:] if rng.random() < 0.6 else question_slots(event))
        kept = [name for name in ("place", "time") if name == slot or rng.random() < 0.5]
        about = without(event, *(name for name in ("adverb", "place", "time") if name not in kept))
        asked = question(reword(about, rng), slot, passive=rng.random() < 0.2, long=rng.random() < 0.2)
        if answered:
            return Asked(asked, surface(event, rng), short_answer(event, slot))
        if rng.random() < 0.25:
            return Asked(asked, surface(draw_event(rng, genre, modifiers=3), rng), None)
        if slot in {"place", "time"} and rng.random() < 0.5:
            return Asked(asked, surface(without(event, slot), rng), None)
        kinds = [kind for kind in changes(event) if kind in {"agent", "patient", "verb", "swap"} and kind != slot]
        return Asked(asked, surface(change(event, rng.choice(kinds), rng, genre), rng), None)
