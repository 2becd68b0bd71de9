"""SuperGLUE-shaped demo data: the eight tasks in the column schema of ``aps/super_glue``, from the demo language.

Every label follows from the text by a rule of the language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from random import Random

from mtlbench.demo.grammar import (
    Noun,
    draw_event,
    question_slots,
    sentence,
    short_answer,
    statement,
    without,
)
from mtlbench.demo.grammar import question as ask_for
from mtlbench.demo.language import infer, surface
from mtlbench.demo.lexicon import BAD, EVERYDAY, GOOD, HE_NAMES, PARTS, SHE_NAMES, SHOWS
from mtlbench.demo.opinions import BOOSTERS
from mtlbench.demo.pronouns import refer
from mtlbench_tasks.demo_rows import Draw, Row, draw_splits, inside

SIZES = {"train": 320, "validation": 80}
_AGAIN = ("It was worth the money.", "It made me happy.")
_NEVER = ("It was a waste of money.", "It made me angry.")


def _boolq(rng: Random) -> tuple[str, list[Row]]:
    label = int(rng.random() < 0.5)
    pair = infer(rng, EVERYDAY, "follows" if label else "clashes")
    passage = f"{pair.premise} {surface(draw_event(rng, EVERYDAY), rng)}"
    return pair.premise, [
        {"question": f"is it true that {inside(pair.hypothesis)}", "passage": passage, "label": label}
    ]


def _cb(rng: Random) -> tuple[str, list[Row]]:
    label = rng.randrange(3)
    pair = infer(rng, EVERYDAY, ("follows", "clashes", "open")[label])
    return pair.premise, [{"premise": pair.premise, "hypothesis": pair.hypothesis.rstrip("."), "label": label}]


def _copa(rng: Random) -> tuple[str, list[Row]]:
    """An opinion and what it leads to, or what came of it and the opinion behind it."""
    good, cause = rng.random() < 0.5, rng.random() < 0.5
    subject = f"the {rng.choice(SHOWS + PARTS)}"
    held, other = (sentence(f"{subject} was {_quality(rng, good=mood)}") for mood in (good, not good))
    then, instead = (rng.choice(_AGAIN if mood else _NEVER) for mood in (good, not good))
    premise, right, wrong = (then, held, other) if cause else (held, then, instead)
    label = rng.randrange(2)
    choices = (wrong, right) if label else (right, wrong)
    row = {"premise": premise, "choice1": choices[0], "choice2": choices[1], "question": "cause" if cause else "effect"}
    return held, [{**row, "label": label}]


def _quality(rng: Random, *, good: bool) -> str:
    return rng.choice(BOOSTERS) + rng.choice(list(GOOD if good else BAD))


def _multirc(rng: Random) -> tuple[str, list[Row]]:
    """Three events and a question about one of them, with the right answer and one or two wrong ones."""
    events = [draw_event(rng, EVERYDAY, modifiers=3) for _ in range(3)]
    told = [surface(event, rng) for event in events]
    about = rng.choice(events)
    slot = rng.choice(question_slots(about))
    right = short_answer(about, slot)
    others = {short_answer(event, each) for event in events for each in question_slots(event)} - {right}
    wrong = rng.sample(sorted(others), k=rng.choice((1, 1, 1, 2)))
    shared = {"paragraph": " ".join(told), "question": ask_for(about, slot)}
    answers = rng.sample([right, *wrong], k=1 + len(wrong))
    return told[0], [{**shared, "answer": answer, "label": int(answer == right)} for answer in answers]


def _rte(rng: Random) -> tuple[str, list[Row]]:
    label = int(rng.random() < 0.5)
    pair = infer(rng, EVERYDAY, rng.choice(("open", "clashes")) if label else "follows")
    return pair.premise, [{"premise": pair.premise, "hypothesis": pair.hypothesis, "label": label}]


_SENSES = {
    "saw": ("{a} saw {x} in the {p}.", "{a} bought the saw in the {p}."),
    "light": ("{a} found a light coat in the {p}.", "{a} broke a light near {x}."),
    "kind": ("{a} had been kind to {x}.", "{a} had seen that kind of fruit in the {p}."),
}


def _wic(rng: Random) -> tuple[str, list[Row]]:
    word, label = rng.choice(list(_SENSES)), rng.random() < 0.5
    first = rng.randrange(2)
    lines = [_use(rng, word, sense) for sense in (first, first if label else 1 - first)]
    starts = [line.index(f" {word} ") + 1 for line in lines]
    row = {"word": word, "sentence1": lines[0], "sentence2": lines[1], "start1": starts[0], "start2": starts[1]}
    row |= {"end1": starts[0] + len(word), "end2": starts[1] + len(word)}
    return lines[0], [{**row, "label": int(label)}]


def _use(rng: Random, word: str, sense: int) -> str:
    thing = rng.choice([each for each in EVERYDAY.things + EVERYDAY.animals if each != word])
    names, place = rng.choice(HE_NAMES + SHE_NAMES), rng.choice(EVERYDAY.places)
    return _SENSES[word][sense].format(a=names, x=f"the {thing}", p=place)


def _wsc(rng: Random) -> tuple[str, list[Row]]:
    pair, label = refer(rng), int(rng.random() < 0.5)
    words, claim = pair.text.split(), (pair.right if label else pair.wrong).split()
    pronoun = words.index("because") + 1
    # The claim is the noun and then what is said of the pronoun.
    size = len(claim) - len(words[pronoun + 1 :])
    noun = next(
        at for at in range(pronoun) if [w.lower() for w in words[at : at + size]] == [w.lower() for w in claim[:size]]
    )
    spans = {"span1_index": noun, "span1_text": " ".join(words[noun : noun + size]), "span2_index": pronoun}
    return pair.text, [{"text": pair.text, **spans, "span2_text": words[pronoun], "label": label}]


def _record(rng: Random) -> tuple[str, list[Row]]:
    """Four events of four people; one of them told again with a gap for the name."""
    names = rng.sample(HE_NAMES + SHE_NAMES, k=4)
    events = []
    for name in names:
        event = draw_event(rng, EVERYDAY, modifiers=2)
        while event.patient_is_person:
            event = draw_event(rng, EVERYDAY, modifiers=2)
        events.append(replace(event, agent=Noun(name)))
    lines = [statement(event) for event in events]
    passage = " ".join(lines[:2]) + "".join(f"\n@highlight\n{line.rstrip('.')}" for line in lines[2:])
    about = rng.randrange(4)
    # The gap comes last, so that all that is known stands before it.
    query = statement(without(events[about], "place", "time"), passive=True).replace(names[about], "@placeholder")
    starts = [passage.index(name) for name in names]
    ends = [start + len(name) for start, name in zip(starts, names, strict=True)]
    spans = {"text": names, "start": starts, "end": ends}
    row = {"passage": passage, "query": query, "entities": names, "entity_spans": spans}
    return lines[0], [{**row, "answers": [names[about]]}]


_DRAWS: Mapping[str, Draw] = {
    "boolq": _boolq, "cb": _cb, "copa": _copa, "multirc": _multirc, "rte": _rte, "wic": _wic, "wsc.fixed": _wsc,
    "record": _record,
}  # fmt: skip
CONFIGS = tuple(_DRAWS)


def superglue_rows(config: str, split: str) -> list[Row]:
    """The rows of one split (`train` or `validation`) of one configuration, with the hub's columns.

    Raises:
        KeyError: the configuration or the split is not there.
    """
    if config not in _DRAWS:
        raise KeyError(f"no SuperGLUE configuration {config!r}: known are {', '.join(CONFIGS)}")
    if split not in SIZES:
        raise KeyError(f"no split {split!r} in {config!r}: known are {', '.join(SIZES)}")
    return [dict(row) for row in _splits(config)[split]]


@cache
def _splits(config: str) -> dict[str, list[Row]]:
    drawn = draw_splits(f"super_glue/{config}", _DRAWS[config], SIZES)
    return {split: _numbered(config, rows) for split, rows in drawn.items()}


def _numbered(config: str, rows: list[Row]) -> list[Row]:
    """The rows with the `idx` of their configuration."""
    if config == "multirc":
        # One question to a paragraph.
        of = {text: i for i, text in enumerate(dict.fromkeys(row["paragraph"] for row in rows))}
        number = [of[row["paragraph"]] for row in rows]
        return [
            {**row, "idx": {"paragraph": number[i], "question": number[i], "answer": i}} for i, row in enumerate(rows)
        ]
    if config == "record":
        return [{**row, "idx": {"passage": i, "query": i}} for i, row in enumerate(rows)]
    return [{**row, "idx": i} for i, row in enumerate(rows)]
