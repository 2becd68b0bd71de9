"""Clauses of the demo language: an `Event` is what happened, and the functions here put it into English."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mtlbench.demo.lexicon import (
    ADJECTIVE_SENSES,
    ADVERB_SENSES,
    ANIMAL_SENSES,
    COLOURS,
    HE_NAMES,
    KIND_OF,
    PERSON_SENSES,
    SHE_NAMES,
    THING_SENSES,
    TIMES,
    VERBS,
    Genre,
)

SIZES = tuple(word for sense in ADJECTIVE_SENSES for word in sense.same)
ADVERBS = tuple(word for sense in ADVERB_SENSES for word in sense.same)


@dataclass(frozen=True)
class Noun:
    """A noun phrase: `Tom`, `the old baker`, `a fruit`; `article` is empty for names and for `someone`."""

    word: str
    article: str = ""
    adjective: str = ""

    def text(self) -> str:
        """The phrase in English, with `an` before a vowel."""
        words = [word for word in (self.adjective, self.word) if word]
        article = "an" if self.article == "a" and words[0][0] in "aeiou" else self.article
        return " ".join([article, *words] if article else words)


@dataclass(frozen=True)
class Event:
    """Who did what to whom, and optionally how, where and when, in the past tense."""

    agent: Noun
    verb: str
    patient: Noun
    adverb: str = ""
    place: str = ""
    time: str = ""
    negated: bool = False

    @property
    def patient_is_person(self) -> bool:
        """Whether the patient can be asked for with `who` and can change places with the agent."""
        return not self.patient.article or KIND_OF.get(self.patient.word) in {"person", "artist"}


def without(event: Event, *slots: str) -> Event:
    """The event with these of adverb, place and time left open."""
    left: dict[str, Any] = dict.fromkeys(slots, "")
    return replace(event, **left)


def sentence(words: str, mark: str = ".") -> str:
    """`words` with a capital first letter and a final mark."""
    return words[0].upper() + words[1:] + mark


def draw_event(rng: Random, genre: Genre, *, modifiers: int = 2, people_only: bool = False) -> Event:
    """A random event of `genre` with up to `modifiers` of adjective, adverb, place and time."""
    kind = "person" if people_only else rng.choice(("thing", "thing", "person", "animal"))
    senses = {"thing": THING_SENSES, "person": PERSON_SENSES, "animal": ANIMAL_SENSES}[kind]
    agent = draw_person(rng, genre)
    patient = draw_person(rng, genre, other_than=agent) if kind == "person" else draw_thing(rng, genre, kind=kind)
    filled: dict[str, Any] = {}
    slots = rng.sample(("adjective", "adverb", "place", "time"), k=rng.randint(0, modifiers))
    if "adverb" in slots:
        filled["adverb"] = rng.choice(ADVERBS)
    if "place" in slots:
        filled["place"] = rng.choice(genre.places)
    if "time" in slots:
        filled["time"] = rng.choice(TIMES)
    if "adjective" in slots and kind != "person":
        patient = Noun(patient.word, patient.article, draw_adjective(rng))
    return Event(agent=agent, verb=rng.choice(rng.choice(senses).same), patient=patient, **filled)


def draw_adjective(rng: Random) -> str:
    """A size, age, price or colour."""
    return rng.choice(SIZES if rng.random() < 0.7 else COLOURS)


def draw_person(rng: Random, genre: Genre, *, other_than: Noun | None = None) -> Noun:
    """A name or a job of `genre`, not the same word as `other_than`."""
    while True:
        named = rng.random() < 0.6
        person = Noun(rng.choice(HE_NAMES + SHE_NAMES)) if named else Noun(rng.choice(genre.people), "the")
        if other_than is None or person.word != other_than.word:
            return person


def draw_thing(rng: Random, genre: Genre, *, kind: str) -> Noun:
    """An animal (`kind` "animal") or a thing of `genre` with `the` or `a`."""
    return Noun(rng.choice(genre.animals if kind == "animal" else genre.things), rng.choice(("the", "the", "a")))


def _tail(event: Event, *, place: bool = True, time: bool = True) -> str:
    parts = []
    if place and event.place:
        parts.append(f"in the {event.place}")
    if time and event.time:
        parts.append(event.time)
    return "".join(f" {part}" for part in parts)


def clause(event: Event, *, passive: bool = False, place: bool = True, time: bool = True) -> str:
    """The event as a clause without capital and full stop, active or passive."""
    verb, tail = VERBS[event.verb], _tail(event, place=place, time=time)
    adverb = f"{event.adverb} " if event.adverb else ""
    denial = "not " if event.negated else ""
    if passive:
        return f"{event.patient.text()} was {denial}{adverb}{verb.participle} by {event.agent.text()}{tail}"
    if event.negated:
        return f"{event.agent.text()} did not {adverb}{verb.base} {event.patient.text()}{tail}"
    return f"{event.agent.text()} {adverb}{verb.past} {event.patient.text()}{tail}"


def statement(event: Event, *, passive: bool = False, front: bool = False) -> str:
    """The event as a sentence; `front` puts the time, else the place, first."""
    if front and event.time:
        return sentence(f"{event.time}, {clause(event, passive=passive, time=False)}")
    if front and event.place:
        return sentence(f"in the {event.place}, {clause(event, passive=passive, place=False)}")
    return sentence(clause(event, passive=passive))


def question_slots(event: Event) -> tuple[str, ...]:
    """What can be asked about the event: agent, patient and, where given, place and time."""
    return ("agent", "patient", *(slot for slot in ("place", "time") if getattr(event, slot)))


def question(event: Event, slot: str, *, passive: bool = False, long: bool = False) -> str:
    """A question for one slot of the event; `long` takes the wordier question phrase (`in which place` for `where`)."""
    verb, adverb = VERBS[event.verb], f"{event.adverb} " if event.adverb else ""
    agent, patient = event.agent.text(), event.patient.text()
    tail = _tail(event, place=slot != "place", time=slot != "time")
    if slot == "agent":
        active = f"{'which person' if long else 'who'} {adverb}{verb.past} {patient}{tail}"
        return sentence(f"by whom was {patient} {adverb}{verb.participle}{tail}" if passive else active, "?")
    if slot == "patient":
        short, wordy = ("who", "which person") if event.patient_is_person else ("what", "which thing")
        word = wordy if long else short
        if passive:
            return sentence(f"{word} was {adverb}{verb.participle} by {agent}{tail}", "?")
        return sentence(f"{word} did {agent} {adverb}{verb.base}{tail}", "?")
    word = {"place": ("where", "in which place"), "time": ("when", "at what time")}[slot][long]
    if passive:
        return sentence(f"{word} was {patient} {adverb}{verb.participle} by {agent}{tail}", "?")
    return sentence(f"{word} did {agent} {adverb}{verb.base} {patient}{tail}", "?")


def short_answer(event: Event, slot: str) -> str:
    """The words that fill one slot of the event."""
    if slot == "place":
        return f"in the {event.place}"
    if slot == "time":
        return event.time
    noun: Noun = event.agent if slot == "agent" else event.patient
    return noun.text()
