"""What may be changed in an event and what the change does to its meaning: the rules every demo label follows from."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from mtlbench.demo.grammar import Event, Noun, draw_adjective, draw_person, draw_thing, without
from mtlbench.demo.lexicon import (
    ADVERB_SENSES,
    KIND_OF,
    TIMES,
    Genre,
    antonyms,
    synonyms,
)

_SLOTS = ("verb", "patient", "agent", "adjective", "adverb", "place")


def _get(event: Event, slot: str) -> str:
    if slot == "adjective":
        return event.patient.adjective
    value = getattr(event, slot)
    return value.word if isinstance(value, Noun) else str(value)


def _put(event: Event, slot: str, word: str) -> Event:
    if slot == "adjective":
        return replace(event, patient=replace(event.patient, adjective=word))
    value = getattr(event, slot)
    new: dict[str, Any] = {slot: replace(value, word=word) if isinstance(value, Noun) else word}
    return replace(event, **new)


def reword(event: Event, rng: Random, *, times: int = 1) -> Event:
    """The same event in up to `times` other words (synonyms)."""
    for slot in rng.sample(_SLOTS, k=len(_SLOTS)):
        others = synonyms(_get(event, slot))
        if times and others:
            event, times = _put(event, slot, rng.choice(others)), times - 1
    return event


def broaden(event: Event, rng: Random) -> Event | None:
    """An event that follows from `event` and says less: a modifier dropped, or a noun made general."""
    options = [without(event, slot) for slot in ("adverb", "place", "time") if getattr(event, slot)]
    if event.patient.adjective:
        options.append(_put(event, "adjective", ""))
    if kind := KIND_OF.get(event.patient.word):
        options.append(replace(event, patient=Noun(kind, "a", event.patient.adjective)))
    if event.agent.word != "someone":
        options.append(replace(event, agent=Noun("someone")))
    return rng.choice(options) if options and not event.negated else None


def narrow(event: Event, rng: Random, genre: Genre) -> Event | None:
    """An event that adds what `event` does not say: a modifier it lacks."""
    options = []
    if not event.adverb:
        options.append(replace(event, adverb=rng.choice(rng.choice(ADVERB_SENSES).same)))
    if not event.place:
        options.append(replace(event, place=rng.choice(genre.places)))
    if not event.time:
        options.append(replace(event, time=rng.choice(TIMES)))
    if not event.patient.adjective and event.patient.article and not event.patient_is_person:
        options.append(_put(event, "adjective", draw_adjective(rng)))
    return rng.choice(options) if options and not event.negated else None


def deny(event: Event, rng: Random) -> Event:
    """An event that cannot be so if `event` is: negated (or the negation taken away), or the opposite verb."""
    others = antonyms(event.verb)
    if event.negated or not others or rng.random() < 0.5:
        return replace(event, negated=not event.negated)
    return replace(event, verb=rng.choice(others))


# How much each kind of change takes from a similarity of 5.0.
COSTS = {"adverb": 0.6, "adjective": 0.8, "time": 1.0, "place": 1.0, "swap": 1.4, "verb": 1.6, "agent": 1.6,
    "patient": 1.8, "negation": 2.0}  # fmt: skip


def changes(event: Event) -> tuple[str, ...]:
    """The kinds of change `change` can make to this event."""
    kinds = ["agent", "patient", "negation"]
    kinds += [slot for slot in ("adverb", "place", "time") if getattr(event, slot)]
    if event.patient.adjective:
        kinds.append("adjective")
    if event.patient_is_person:
        kinds.append("swap")
    if antonyms(event.verb):
        kinds.append("verb")
    return tuple(kinds)


def change(event: Event, kind: str, rng: Random, genre: Genre) -> Event:
    """The event with one part made another, so that it means something else; `kind` is one of `changes(event)`."""
    if kind == "negation":
        return replace(event, negated=not event.negated)
    if kind == "swap":
        return replace(event, agent=event.patient, patient=event.agent)
    if kind == "agent":
        return replace(event, agent=_other(event.agent, rng, genre, avoid=(event.agent, event.patient)))
    if kind == "patient":
        return replace(event, patient=_other(event.patient, rng, genre, avoid=(event.agent, event.patient)))
    if kind == "verb":
        return replace(event, verb=rng.choice(antonyms(event.verb)))
    if kind in {"adverb", "adjective"} and antonyms(_get(event, kind)):
        return _put(event, kind, rng.choice(antonyms(_get(event, kind))))
    pools = {"place": genre.places, "time": TIMES, "adjective": ("red", "blue", "green", "white", "black")}
    old = _get(event, kind)
    return _put(event, kind, rng.choice([word for word in pools[kind] if word != old and word not in synonyms(old)]))


def _other(noun: Noun, rng: Random, genre: Genre, *, avoid: tuple[Noun, ...]) -> Noun:
    banned = {word for each in avoid for word in (each.word, *synonyms(each.word))}
    while True:
        if noun.word in genre.animals or noun.word in genre.things:
            kind = "animal" if noun.word in genre.animals else "thing"
            other = replace(draw_thing(rng, genre, kind=kind), article=noun.article, adjective=noun.adjective)
        else:
            other = draw_person(rng, genre)
        if other.word not in banned:
            return other
