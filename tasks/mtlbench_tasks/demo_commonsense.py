"""Demo data of the commonsense suite: its tasks in their hub schemas, from the demo language.

What is right follows from rules of the language: word order, pronouns, sentiment, kinds, opposites, what was said
before. BoolQ's rows are those of the SuperGLUE demo.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

from mtlbench.demo.grammar import clause, draw_event, question, question_slots, sentence, short_answer
from mtlbench.demo.judgements import judge
from mtlbench.demo.language import surface
from mtlbench.demo.lexicon import ADJECTIVE_SENSES, EVERYDAY, HE_NAMES, KIND_OF, KINDS, SHE_NAMES, SHOWS
from mtlbench.demo.opinions import opinion
from mtlbench.demo.pronouns import refer
from mtlbench_tasks.demo_rows import Draw, Row, draw_splits, shuffled
from mtlbench_tasks.demo_superglue import superglue_rows

SIZES = {"train": 320, "validation": 80}
_LETTERS = ["A", "B", "C", "D"]
_NAMES = HE_NAMES + SHE_NAMES


def _piqa(rng: Random) -> tuple[str, list[Row]]:
    """A sentence from its words: well-formed, or broken in one place."""
    good, broken = judge(rng, EVERYDAY)
    words = " ".join(sorted(good.rstrip(".?").split(), key=str.lower))
    label = rng.randrange(2)
    first, second = (broken, good) if label else (good, broken)
    return good, [{"goal": f"Make a sentence of these words: {words}", "sol1": first, "sol2": second, "label": label}]


def _social_iqa(rng: Random) -> tuple[str, list[Row]]:
    """What someone who holds an opinion does next: praise, blame, or something else altogether."""
    good, name = rng.random() < 0.5, rng.choice(_NAMES)
    held = sentence(opinion(rng, good=good, subject=f"the {rng.choice(SHOWS)}"))
    praise, blame = "It was worth the money.", "It was a waste of money."
    right, wrong = (praise, blame) if good else (blame, praise)
    answers, at = shuffled(rng, right, [wrong, surface(draw_event(rng, EVERYDAY), rng)])
    row = {"context": f"{name} said: {held}", "question": f"What will {name} say then?"}
    row |= {f"answer{letter}": answer for letter, answer in zip("ABC", answers, strict=True)}
    return row["context"], [{**row, "label": str(at + 1)}]


def _hellaswag(rng: Random) -> tuple[str, list[Row]]:
    """A story about one person: the ending in good order, among three with two neighbouring words exchanged."""
    name = rng.choice(_NAMES)
    does = [_deed(rng) for _ in range(3)]
    words = does[2].split()
    wrong = [
        " ".join([*words[:at], words[at + 1], words[at], *words[at + 2 :]])
        for at in rng.sample(range(len(words) - 1), k=3)
    ]
    endings, at = shuffled(rng, f"{does[2]}.", [f"{ending}." for ending in wrong])
    first, pronoun = sentence(f"{name} {does[0]}"), "he" if name in HE_NAMES else "she"
    text = f"{first} {sentence(f'{pronoun} {does[1]}')}"
    shown = {"activity_label": "A story", "ctx_a": text, "ctx_b": pronoun, "ctx": f"{text} {pronoun}"}
    row = {"ind": 0, **shown, "endings": endings, "source_id": "demo", "split": "demo", "split_type": "indomain"}
    return first, [{**row, "label": str(at)}]


def _deed(rng: Random) -> str:
    """What someone did, without the someone."""
    event = draw_event(rng, EVERYDAY)
    while len(clause(event).removeprefix(event.agent.text()).split()) < 4:
        event = draw_event(rng, EVERYDAY)
    return clause(event).removeprefix(f"{event.agent.text()} ")


def _winogrande(rng: Random) -> tuple[str, list[Row]]:
    pair = refer(rng)
    right, wrong = pair.right.rstrip(".").split(), pair.wrong.rstrip(".").split()
    said = " ".join(pair.text.rstrip(".").split(" because ")[1].split()[1:])
    nouns = [" ".join(words).removesuffix(f" {said}") for words in (right, wrong)]
    answer = rng.randrange(2)
    options = nouns[::-1] if answer else nouns
    text = f"{pair.text.split(' because ')[0]} because _ {said}."
    return pair.text, [{"sentence": text, "option1": options[0], "option2": options[1], "answer": str(answer + 1)}]


def arc_easy(rng: Random) -> tuple[str, list[Row]]:
    """An event and a question about it; the wrong answers are other events' answers to the same question."""
    event = draw_event(rng, EVERYDAY, modifiers=3)
    slot = rng.choice(question_slots(event))
    right = short_answer(event, slot)
    wrong: list[str] = []
    while len(wrong) < 3:
        other = draw_event(rng, EVERYDAY, modifiers=3)
        if slot in question_slots(other) and short_answer(other, slot) not in (right, *wrong):
            wrong.append(short_answer(other, slot))
    told = surface(event, rng)
    return told, [_arc(rng, "question", f"{told} {question(event, slot)}", right, wrong)]


def arc_challenge(rng: Random) -> tuple[str, list[Row]]:
    """Someone says the opposite of what was said."""
    senses = [sense for sense in ADJECTIVE_SENSES if sense.opposite]
    sense = rng.choice(senses)
    thing, word = rng.choice(EVERYDAY.things), rng.choice(sense.same)
    first, second = rng.sample(_NAMES, k=2)
    told = f"{first} found that the {thing} was {word}."
    others = [each for each in senses if each.same not in (sense.same, sense.opposite)]
    wrong = [word, *(rng.choice(each.same) for each in rng.sample(others, k=2))]
    asked = f"{told} {second} found the opposite. How was the {thing} for {second}?"
    return told, [_arc(rng, "question", asked, rng.choice(sense.opposite), wrong)]


def openbookqa(rng: Random) -> tuple[str, list[Row]]:
    """An event, and what kind of thing it was about."""
    event = draw_event(rng, EVERYDAY, modifiers=1)
    while event.patient.word not in KIND_OF or event.patient_is_person:
        event = draw_event(rng, EVERYDAY, modifiers=1)
    kind = KIND_OF[event.patient.word]
    told = surface(event, rng)
    wrong = rng.sample([each for each in KINDS if each not in (kind, "person", "artist")], k=3)
    noun = event.patient.word
    article = "An" if noun[0] in "aeiou" else "A"
    return told, [_arc(rng, "question_stem", f"{told} {article} {noun} is a kind of", kind, wrong)]


def _arc(rng: Random, column: str, asked: str, right: str, wrong: list[str]) -> Row:
    answers, at = shuffled(rng, right, wrong)
    return {column: asked, "choices": {"text": answers, "label": _LETTERS}, "answerKey": _LETTERS[at]}


_DRAWS: Mapping[tuple[str, str | None], Draw] = {
    ("baber/piqa", None): _piqa,
    ("lighteval/siqa", None): _social_iqa,
    ("Rowan/hellaswag", None): _hellaswag,
    ("allenai/winogrande", "winogrande_xl"): _winogrande,
    ("allenai/ai2_arc", "ARC-Easy"): arc_easy,
    ("allenai/ai2_arc", "ARC-Challenge"): arc_challenge,
    ("allenai/openbookqa", "main"): openbookqa,
}
CONFIGS = (("aps/super_glue", "boolq"), *_DRAWS)


def commonsense_rows(dataset: str, config: str | None, split: str) -> list[Row]:
    """The rows of one split (`train` or `validation`) of one data set, with the hub's columns.

    Raises:
        KeyError: the data set or the split is not there.
    """
    if (dataset, config) not in CONFIGS:
        raise KeyError(f"no data set {dataset!r} with configuration {config!r}: known are {CONFIGS}")
    if split not in SIZES:
        raise KeyError(f"no split {split!r} in {dataset!r}: known are {', '.join(SIZES)}")
    if dataset == "aps/super_glue":
        return superglue_rows("boolq", split)
    return [dict(row) for row in _splits(dataset, config)[split]]


@cache
def _splits(dataset: str, config: str | None) -> dict[str, list[Row]]:
    drawn = draw_splits(f"{dataset}/{config}", _DRAWS[dataset, config], SIZES)
    named = dataset.startswith("allenai/") and config != "winogrande_xl"
    return {
        split: [{"id": f"{split}-{i}", **row} if named else row for i, row in enumerate(rows)]
        for split, rows in drawn.items()
    }
