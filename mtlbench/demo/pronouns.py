"""Pronouns of the demo language: sentences with a `he`, `she` or `it`, and who or what is meant."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mtlbench.demo.grammar import sentence
from mtlbench.demo.lexicon import HE_NAMES, SHE_NAMES

# What A did to B, what is said of the pronoun, and which of the two it stands for.
_PEOPLE = (
    ("{a} thanked {b}", "had been kind", "b"), ("{a} praised {b}", "had worked well", "b"),
    ("{a} blamed {b}", "had made a mistake", "b"), ("{a} hired {b}", "needed a worker", "a"),
    ("{a} hired {b}", "was a good cook", "b"), ("{a} visited {b}", "was ill", "b"),
    ("{a} visited {b}", "felt lonely", "a"), ("{a} followed {b}", "knew the road", "b"),
    ("{a} followed {b}", "was lost", "a"), ("{a} sold a car to {b}", "needed money", "a"),
    ("{a} sold a car to {b}", "wanted to drive", "b"), ("{a} lent a book to {b}", "had finished it", "a"),
    ("{a} lent a book to {b}", "wanted to read it", "b"), ("{a} paid {b}", "had washed the car", "b"),
    ("{a} called {b}", "wanted some news", "a"), ("{a} ignored {b}", "was rude", "b"),
    ("{a} asked {b} for help", "could not swim", "a"), ("{a} feared {b}", "was angry", "b"),
    ("{a} dismissed {b}", "worked badly", "b"), ("{a} found {b}", "had a map", "a"),
)  # fmt: skip
_BIG = ("violin", "drum", "lamp", "barrel", "doll", "kite", "saw", "spade", "coat", "net")
_ROOMY = ("box", "bag", "car", "truck", "wagon", "case")
_SIZE = (("was too big", "a"), ("was too small", "b"), ("was too wide", "a"), ("was too narrow", "b"))


@dataclass(frozen=True)
class Pronoun:
    """A text with a pronoun, the sentence it stands for, and the same with the other candidate."""

    text: str
    right: str
    wrong: str


def refer(rng: Random) -> Pronoun:
    """A text with a pronoun whose meaning follows from what happened (and sometimes from the gender too)."""
    if rng.random() < 0.2:
        first, second = f"the {rng.choice(_BIG)}", f"the {rng.choice(_ROOMY)}"
        said, which = rng.choice(_SIZE)
        main, pronoun = f"{first} did not fit in {second}", "it"
    else:
        if rng.random() < 0.5:
            first, second = rng.sample((rng.choice(HE_NAMES), rng.choice(SHE_NAMES)), k=2)
        else:
            first, second = rng.sample(rng.choice((HE_NAMES, SHE_NAMES)), k=2)
        template, said, which = rng.choice(_PEOPLE)
        main = template.format(a=first, b=second)
        pronoun = "he" if (first if which == "a" else second) in HE_NAMES else "she"
    meant, other = (first, second) if which == "a" else (second, first)
    text = sentence(f"{main} because {pronoun} {said}")
    return Pronoun(text=text, right=sentence(f"{meant} {said}"), wrong=sentence(f"{other} {said}"))
