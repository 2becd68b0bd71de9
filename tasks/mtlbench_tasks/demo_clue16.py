"""Demo data of the Chinese suite: its sixteen sets in their own columns, the text in the demo language.

Every label follows from the text by a rule of the language. The names of the labels are those of the real sets and mean
nothing here: what is a topic there is the kind of thing a sentence is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from random import Random

from mtlbench.demo.grammar import draw_event, sentence
from mtlbench.demo.language import compare_questions, infer, surface
from mtlbench.demo.lexicon import BAD, EVERYDAY, GOOD, HE_NAMES, KIND_OF, KINDS, PARTS, SEASIDE, SHE_NAMES, SHOWS, Genre
from mtlbench.demo.opinions import BOOSTERS, opinion, review
from mtlbench_tasks.demo_commonsense import arc_easy
from mtlbench_tasks.demo_reading import read
from mtlbench_tasks.demo_rows import Draw, Row, draw_splits
from mtlbench_tasks.relations import FINRE

_NAMES = HE_NAMES + SHE_NAMES
_TOPICS = ("fruit", "vegetable", "tool", "vehicle", "instrument", "toy", "garment", "animal", "bird", "person")
_SEA_TOPICS = ("boat", "gem", "container", "light", "fish")


def _same(rng: Random) -> tuple[str, list[Row]]:
    label = int(rng.random() < 0.5)
    pair = compare_questions(rng, EVERYDAY, same=bool(label))
    return pair.first, [{"sentence1": pair.first, "sentence2": pair.second, "label": label}]


def _nli(rng: Random) -> tuple[str, list[Row]]:
    label = rng.randrange(3)
    pair = infer(rng, EVERYDAY, ("open", "follows", "clashes")[label])
    return pair.premise, [{"sentence1": pair.premise, "sentence2": pair.hypothesis, "label": label}]


def _sentiment(rng: Random) -> tuple[str, list[Row]]:
    label = int(rng.random() < 0.5)
    text = sentence(review(rng, good=bool(label)))
    return text, [{"text": text, "label": label}]


def _stars(rng: Random) -> tuple[str, list[Row]]:
    """Words of praise or blame in three strengths; the weakest of both are the middle."""
    label = rng.randrange(5)
    strength = {0: 3, 1: 2, 2: 1, 3: 2, 4: 3}[label]
    moods = (BAD,) if label < 2 else (GOOD,) if label > 2 else (BAD, GOOD)
    words = [word for mood in moods for word, value in mood.items() if value == strength]
    first, second = rng.sample(SHOWS + PARTS, k=2)
    held = [f"the {noun} was {rng.choice(BOOSTERS)}{rng.choice(words)}" for noun in (first, second)]
    text = sentence(" and ".join(held[: rng.choice((1, 2))]))
    return text, [{"id": "", "text": text, "label": label, "label_text": str(label)}]


def _topic(column: str, topics: tuple[str, ...], rng: Random) -> tuple[str, list[Row]]:
    label = rng.randrange(len(topics))
    genre: Genre = SEASIDE if topics[label] in _SEA_TOPICS else EVERYDAY
    event = draw_event(rng, genre, modifiers=2)
    while _kind(event.patient.word) != topics[label]:
        event = draw_event(rng, genre, modifiers=2)
    text = surface(event, rng)
    return text, [{column: text, "label": label}]


def _kind(noun: str) -> str:
    kind = KIND_OF.get(noun, "person")
    return "person" if kind == "artist" else kind


def _reading(rng: Random) -> tuple[str, list[Row]]:
    asked = read(rng)
    answers = {"text": [asked.answer], "answer_start": [asked.start]}
    return asked.first, [{"context": asked.passage, "question": asked.question, "answers": answers}]


def _c3(rng: Random) -> tuple[str, list[Row]]:
    told, (row,) = arc_easy(rng)
    choice = row["choices"]["text"]
    answer = choice[row["choices"]["label"].index(row["answerKey"])]
    asked = row["question"].removeprefix(f"{told} ")
    return told, [{"context": [told], "question": asked, "choice": choice, "answer": answer}]


def _target(rng: Random) -> tuple[str, list[Row]]:
    """Something happened, and an opinion about a show or a part of one: the target."""
    noun = rng.choice(SHOWS + PARTS)
    held = sentence(opinion(rng, good=rng.random() < 0.5, subject=f"the {noun}"))
    told = surface(draw_event(rng, EVERYDAY, modifiers=1), rng)
    return held, [{"s": f"{told} {held}" if rng.random() < 0.5 else f"{held} {told}", "ot": noun}]


def _people(rng: Random) -> tuple[str, str]:
    first, second = rng.sample(_NAMES, k=2)
    return first, second


def _things(rng: Random) -> tuple[str, str]:
    first, second = rng.sample(EVERYDAY.things, k=2)
    return first, second


def _owner(rng: Random) -> tuple[str, str]:
    return rng.choice(_NAMES), rng.choice(EVERYDAY.things)


def _kinds(rng: Random) -> tuple[str, str]:
    noun = rng.choice([noun for noun in EVERYDAY.things if noun in KIND_OF])
    return KIND_OF[noun], noun


Pair = Callable[[Random], tuple[str, str]]
_SANWEN: tuple[tuple[str, Pair, tuple[str, ...]], ...] = (
    ("unknown", _people, ("{a} slept and {b} waited.", "{a} sang while {b} worked.")),
    ("Create", _owner, ("{a} built the {b}.", "{a} painted the {b}.")),
    ("Use", lambda rng: (rng.choice(_NAMES), rng.choice(KINDS["tool"][:3])), ("{a} worked with the {b}.",)),
    ("Near", _things, ("The {a} was near the {b}.",)),
    ("Located", lambda rng: (rng.choice(EVERYDAY.things), rng.choice(EVERYDAY.places)), ("The {a} was in the {b}.",)),
    ("Ownership", _owner, ("{a} bought the {b}.", "{a} kept the {b}.")),
    ("Social", _people, ("{a} helped {b}.", "{a} praised {b}.", "{a} visited {b}.")),
    ("Family", _people, ("{a} and {b} have one mother.", "{a} taught the child of {b}.")),
    ("General-Special", _kinds, ("One kind of {a} is the {b}.",)),
    ("Part-Whole", lambda rng: (rng.choice(PARTS), rng.choice(SHOWS)), ("The {a} of the {b} was new.",)),
)
_FINRE: tuple[tuple[str, str, str], ...] = (
    ("收购", "被收购", "{a} bought the shop of {b}"), ("帮助", "被帮助", "{a} helped {b}"),
    ("拥有", "被拥有", "{a} keeps the shop of {b}"), ("分析", "被分析", "{a} read the book of {b}"),
    ("合作", "合作", "{a} works with {b}"), ("竞争", "竞争", "{a} runs against {b}"),
    ("unknown", "unknown", "{a} slept and {b} waited"),
)  # fmt: skip


def _sanwen(rng: Random) -> tuple[str, list[Row]]:
    relation, pair, forms = rng.choice(_SANWEN)
    head, tail = pair(rng)
    text = rng.choice(forms).format(a=head, b=tail)
    told = surface(draw_event(rng, EVERYDAY, modifiers=1), rng)
    return told, [{"head": head, "tail": tail, "relation": relation, "sentence": f"{text} {told}"}]


def _finre(rng: Random) -> tuple[str, list[Row]]:
    """Who does what to whom; asked from either side."""
    relation, inverse, form = rng.choice(_FINRE)
    first, second = _people(rng)
    assert relation in FINRE and inverse in FINRE
    time = rng.choice(("today", "on Monday", "on Friday", "this morning", "in May"))
    told = surface(draw_event(rng, EVERYDAY, modifiers=1), rng)
    text = f"{form.format(a=first, b=second)} {time}. {told}"
    turned = rng.random() < 0.5
    head, tail = (second, first) if turned else (first, second)
    return told, [{"head": head, "tail": tail, "relation": inverse if turned else relation, "sentence": text}]


_DRAWS: Mapping[tuple[str, str | None], tuple[Draw, str]] = {
    ("clue/clue", "afqmc"): (_same, "validation"),
    ("mteb/amazon_reviews_multi", "zh"): (_stars, "validation"),
    ("thunlp/THUCNews", "title10"): (partial(_topic, "text", _TOPICS), "validation"),
    ("shibing624/nli_zh", "BQ"): (_same, "validation"),
    ("clue/clue", "cmnli"): (_nli, "validation"),
    ("clue/clue", "cmrc2018"): (_reading, "validation"),
    ("thunlp/Chinese_NRE", "SanWen"): (_sanwen, "validation"),
    ("lsvih/chinese-customer-review", "mafengwo"): (_target, "test"),
    ("seamew/ChnSentiCorp", None): (_sentiment, "validation"),
    ("clue/clue", "tnews"): (partial(_topic, "sentence", _TOPICS + _SEA_TOPICS), "validation"),
    ("clue/clue", "ocnli"): (_nli, "validation"),
    ("shibing624/nli_zh", "LCQMC"): (_same, "validation"),
    ("clue/clue", "drcd"): (_reading, "validation"),
    ("clue/clue", "c3"): (_c3, "validation"),
    ("lsvih/chinese-customer-review", "baidu"): (_target, "test"),
    ("thunlp/Chinese_NRE", "FinRE"): (_finre, "validation"),
}
CONFIGS = tuple(_DRAWS)
TRAIN, EVALUATION = 320, 80


def clue16_rows(dataset: str, config: str | None, split: str) -> list[Row]:
    """The rows of one split (`train`, or the evaluation split) of one set, with its columns.

    Raises:
        KeyError: the set or the split is not there.
    """
    if (dataset, config) not in _DRAWS:
        raise KeyError(f"no data set {dataset!r} with configuration {config!r}: known are {CONFIGS}")
    known = ("train", _DRAWS[dataset, config][1])
    if split not in known:
        raise KeyError(f"no split {split!r} in {dataset!r} {config!r}: known are {', '.join(known)}")
    return [dict(row) for row in _splits(dataset, config)[split]]


@cache
def _splits(dataset: str, config: str | None) -> dict[str, list[Row]]:
    draw, evaluation = _DRAWS[dataset, config]
    drawn = draw_splits(f"{dataset}/{config}", draw, {"train": TRAIN, evaluation: EVALUATION})
    return {split: [_numbered(dataset, config, i, row) for i, row in enumerate(rows)] for split, rows in drawn.items()}


def _numbered(dataset: str, config: str | None, number: int, row: Row) -> Row:
    """The row with the number its set gives it."""
    if dataset == "clue/clue":
        if config == "c3":
            return {"id": number, **row}
        return {"id": str(number), **row} if config in ("cmrc2018", "drcd") else {**row, "idx": number}
    return {**row, "id": f"zh_{number}"} if dataset == "mteb/amazon_reviews_multi" else row
