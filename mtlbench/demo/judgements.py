"""Well-formed sentences of the demo language, each with the same sentence broken by one rule of grammar."""

from __future__ import annotations

from random import Random

from mtlbench.demo.grammar import clause, draw_event, question, sentence, statement
from mtlbench.demo.language import plural
from mtlbench.demo.lexicon import ACTIONS, HE_NAMES, SHE_NAMES, VERBS, Genre

_SELF_VERBS = ("saw", "praised", "blamed", "helped", "trusted", "washed", "hid", "calmed", "criticized", "taught")
_OFTEN = ("every day", "at night", "on Sunday", "in summer", "all day")


def judge(rng: Random, genre: Genre) -> tuple[str, str]:
    """A well-formed sentence and a broken one that differs from it in one place."""
    builder = rng.choice((_agreement, _agreement, _determiner, _reflexive, _order, _missing, _doubled, _asked, _salad))
    return builder(rng, genre)


def _agreement(rng: Random, genre: Genre) -> tuple[str, str]:
    many = rng.random() < 0.5
    noun, near = rng.sample(genre.people + genre.animals, k=2)
    near = near if rng.random() < 0.5 else plural(near)
    subject = f"the {plural(noun) if many else noun}" + (f" near the {near}" if rng.random() < 0.6 else "")
    verb = VERBS[rng.choice(ACTIONS)]
    right, wrong = (verb.base, verb.third) if many else (verb.third, verb.base)
    if rng.random() < 0.4:
        right, wrong = ("are", "is") if many else ("is", "are")
        right, wrong = (f"{word} in the {rng.choice(genre.places[:3])}" for word in (right, wrong))
        wrong = wrong.split(" ", 1)[0] + " " + right.split(" ", 1)[1]
    tail = f" {rng.choice(_OFTEN)}"
    return sentence(f"{subject} {right}{tail}"), sentence(f"{subject} {wrong}{tail}")


def _determiner(rng: Random, genre: Genre) -> tuple[str, str]:
    noun, many = rng.choice(genre.animals + genre.things + genre.people), rng.random() < 0.5
    word = rng.choice(("these", "those", "two", "three", "many") if many else ("this", "that", "one", "every"))
    right, wrong = (plural(noun), noun) if many else (noun, plural(noun))
    agent, verb = rng.choice(HE_NAMES + SHE_NAMES), rng.choice(("saw", "found", "lost", "liked", "painted", "noticed"))
    place = f" in the {rng.choice(genre.places)}" if rng.random() < 0.5 else ""
    return sentence(f"{agent} {verb} {word} {right}{place}"), sentence(f"{agent} {verb} {word} {wrong}{place}")


def _reflexive(rng: Random, genre: Genre) -> tuple[str, str]:
    he = rng.random() < 0.5
    subject = rng.choice(HE_NAMES if he else SHE_NAMES)
    right, wrong = ("himself", "herself") if he else ("herself", "himself")
    if rng.random() < 0.3:
        subject, right = f"the {plural(rng.choice(genre.people))}", "themselves"
    tail = f" in the {rng.choice(genre.places)}" if rng.random() < 0.5 else ""
    verb = rng.choice(_SELF_VERBS)
    return sentence(f"{subject} {verb} {right}{tail}"), sentence(f"{subject} {verb} {wrong}{tail}")


def _order(rng: Random, genre: Genre) -> tuple[str, str]:
    words = clause(draw_event(rng, genre, modifiers=2), passive=rng.random() < 0.3).split()
    places = [index for index, word in enumerate(words[:-1]) if word in {"the", "a", "an", "in", "was", "by"}]
    place = rng.choice(places) if places else 0
    broken = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
    return sentence(" ".join(words)), sentence(" ".join(broken))


def _salad(rng: Random, genre: Genre) -> tuple[str, str]:
    words = clause(draw_event(rng, genre, modifiers=2)).split()
    shuffled = words
    while shuffled == words:
        shuffled = rng.sample(words, k=len(words))
    return sentence(" ".join(words)), sentence(" ".join(shuffled))


def _missing(rng: Random, genre: Genre) -> tuple[str, str]:
    event = draw_event(rng, genre, modifiers=2)
    words = clause(event).split()
    verb = VERBS[event.verb].past
    dropped = verb if rng.random() < 0.5 else event.patient.word
    return sentence(" ".join(words)), sentence(" ".join(word for word in words if word != dropped))


def _doubled(rng: Random, genre: Genre) -> tuple[str, str]:
    event = draw_event(rng, genre, modifiers=1)
    verb = VERBS[event.verb]
    agent, patient = event.agent.text(), event.patient.text()
    tail = f" {event.time}" if event.time else ""
    helper, right, wrong = rng.choice(
        (("did not", verb.base, verb.third), ("will", verb.base, verb.third), ("can", verb.base, verb.third))
    )
    if rng.random() < 0.4:
        helper, right, wrong = "wants to", verb.base, verb.third
    return sentence(f"{agent} {helper} {right} {patient}{tail}"), sentence(f"{agent} {helper} {wrong} {patient}{tail}")


def _asked(rng: Random, genre: Genre) -> tuple[str, str]:
    event = draw_event(rng, genre, modifiers=2)
    right = question(event, rng.choice(("patient", "place") if event.place else ("patient",)))
    agent = event.agent.text()
    broken = right.replace(f"did {agent}", f"{agent} did")
    return (right, broken) if rng.random() < 0.7 else (statement(event), statement(event).replace(".", " did."))
