"""Reading comprehension from the demo language: three events, and a question about one of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mtlbench.demo.grammar import draw_event, question, question_slots, short_answer
from mtlbench.demo.language import surface
from mtlbench.demo.lexicon import EVERYDAY


@dataclass(frozen=True)
class Reading:
    """A passage, its first sentence, a question, and the words of the passage that answer it."""

    first: str
    passage: str
    question: str
    answer: str
    start: int
    """Where the answer begins in the passage, in characters."""


def read(rng: Random) -> Reading:
    """A passage of three events with a question that one of them answers."""
    while True:
        events = [draw_event(rng, EVERYDAY, modifiers=3) for _ in range(3)]
        told = [surface(event, rng) for event in events]
        about = rng.randrange(3)
        slot = rng.choice(question_slots(events[about]))
        answer = short_answer(events[about], slot)
        at = told[about].find(answer)
        asked = question(events[about], slot)
        others = [event for n, event in enumerate(events) if n != about and slot in question_slots(event)]
        # The answer as the passage writes it, and no other event that answers the same question.
        if at >= 0 and all(question(event, slot) != asked for event in others):
            start = sum(len(text) + 1 for text in told[:about]) + at
            return Reading(told[0], " ".join(told), asked, answer, start)
