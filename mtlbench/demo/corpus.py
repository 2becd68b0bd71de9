"""The pretraining text of the demo backbones: short documents made from the demo language.

About a quarter is prose (stories, reviews, definitions, paraphrases, inferences, questions with their answers); the
rest are drills that put one skill into many formats with many answer words, so that what a backbone learns is the skill
and not a format. No drill is written in, or answered like, a prompt of a task: those are left for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TypeVar

from mtlbench.demo.judgements import judge
from mtlbench.demo.language import Inference, ask, compare, compare_questions, infer, reserved
from mtlbench.demo.lexicon import EVERYDAY, SEASIDE, Genre
from mtlbench.demo.opinions import review
from mtlbench.demo.pronouns import refer
from mtlbench.demo.prose import PROSE


@dataclass(frozen=True)
class Document:
    """One training text, as what is given and what is to be said next; `text` is both."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The whole document."""
        return f"{self.prompt} {self.answer}" if self.prompt else self.answer


Draw = tuple[tuple[str, ...], int]
T = TypeVar("T")
_CUES = ("=>", "->", "Verdict:", "Result:", "Mark:", "Reply:", "Tag:", "I say:", "Then:", "Note:")
_ONE = (
    "{a}\n{ask} {cue}",
    "{a} {ask} {cue}",
    "{ask} {a} {cue}",
    "{ask}\n{a}\n{cue}",
    "{a}\n{ask}\n{cue}",
    "Text: {a}\n{ask} {cue}",
)
_TWO = (
    "{a}\n{b}\n{ask} {cue}", "{a} {b} {ask} {cue}", "{a}\n{b}\n{ask}\n{cue}", "{ask}\n{a}\n{b}\n{cue}",
    "{ask} {a} / {b} {cue}",
    "One: {a} Two: {b} {ask} {cue}", "One: {a}\nTwo: {b}\n{ask} {cue}", "{a}\nLine: {b} {ask} {cue}",
    "a) {a}\nb) {b}\n{ask} {cue}",
    "Here: {a}\nThere: {b}\n{ask}\n{cue}", "{a}\nRemark: {b} {ask}\n{cue}", "left: {a} right: {b}\n{ask} {cue}",
)  # fmt: skip


@dataclass(frozen=True)
class Skill:
    """One skill: how to draw texts and their class, and ways to ask for the class, each with its own answer words."""

    draw: Callable[[Random, Genre], Draw]
    asks: tuple[tuple[str, tuple[str, ...]], ...]


def _sentiment(rng: Random, genre: Genre) -> Draw:
    good = rng.random() < 0.5
    return (review(rng, good=good),), int(good)


def _grammar(rng: Random, genre: Genre) -> Draw:
    good = rng.random() < 0.5
    return (judge(rng, genre)[0 if good else 1],), int(good)


def _sameness(rng: Random, genre: Genre) -> Draw:
    pair = compare(rng, genre, count=rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 3, -1)))
    return (pair.first, pair.second), int(not pair.changed)


def _same_question(rng: Random, genre: Genre) -> Draw:
    same = rng.random() < 0.5
    pair = compare_questions(rng, genre, same=same)
    return (pair.first, pair.second), int(same)


_RELATIONS: tuple[Inference, ...] = ("follows", "open", "clashes")


def _three_way(rng: Random, genre: Genre) -> Draw:
    label = rng.randrange(3)
    pair = infer(rng, genre, _RELATIONS[label])
    return (pair.premise, pair.hypothesis), label


def _two_way(rng: Random, genre: Genre) -> Draw:
    label = rng.choice((0, 0, 1, 2))
    pair = infer(rng, genre, _RELATIONS[label])
    return (pair.premise, pair.hypothesis), int(label == 0)


def _answering(rng: Random, genre: Genre) -> Draw:
    answered = rng.random() < 0.5
    pair = ask(rng, genre, answered=answered)
    return (pair.question, pair.sentence), int(answered)


def _reference(rng: Random, genre: Genre) -> Draw:
    right, pair = rng.random() < 0.5, refer(rng)
    return (pair.text, pair.right if right else pair.wrong), int(right)


SKILLS: tuple[tuple[float, Skill], ...] = (
    (0.7, Skill(_sentiment, (
        ("Would the writer go again?", ("skip", "return")), ("The mood is", ("bitter", "sunny")),
        ("Thumbs", ("down", "up")),
        ("What did the critic feel?", ("anger", "joy")), ("Stars:", ("few", "many")),
        ("Is it praise or blame?", ("blame", "praise")),
    ))),
    (1.0, Skill(_grammar, (
        ("Is this good English?", ("broken", "sound")), ("The grammar is", ("faulty", "proper")),
        ("Could one say so?", ("never", "surely")),
        ("Check the words.", ("error", "okay")), ("Does it need repair?", ("repair", "leave")),
        ("The editor says", ("fix", "print")),
    ))),
    (2.2, Skill(_sameness, (
        ("Do the two agree?", ("differ", "agree")), ("Is it a copy in other words?", ("change", "copy")),
        ("Compare the lines.", ("apart", "alike")),
        ("Equal or unequal?", ("unequal", "equal")), ("Did the message stay?", ("moved", "stayed")),
        ("One event or two?", ("two", "one")),
    ))),
    (1.8, Skill(_same_question, (
        ("Would one reply do for both?", ("separate", "shared")), ("Are they twins?", ("strangers", "twins")),
        ("Match them.", ("mismatch", "match")),
        ("Is one of them spare?", ("needed", "spare")), ("Merge or split?", ("split", "merge")),
    ))),
    (1.6, Skill(_three_way, (
        ("How is the claim?", ("certain", "unknown", "impossible")),
        ("Does it follow?", ("follows", "open", "clashes")),
        ("Judge the claim.", ("proved", "unproved", "refuted")),
        ("Given the first, the second is", ("sure", "possible", "excluded")),
        ("Would you bet on it?", ("surely", "perhaps", "never")), ("So what of it?", ("right", "unclear", "wrong")),
    ))),
    (0.8, Skill(_two_way, (
        ("Can we conclude that?", ("refuse", "conclude")), ("Is the claim backed?", ("baseless", "backed")),
        ("Would a judge accept it?", ("reject", "accept")),
        ("Implied or not implied?", ("free", "implied")), ("A safe step?", ("risky", "safe")),
    ))),
    (1.8, Skill(_answering, (
        ("Do we learn it here?", ("silent", "told")), ("Is the reader helped?", ("useless", "useful")),
        ("Can one reply now?", ("wait", "reply")),
        ("Solved or unsolved?", ("unsolved", "solved")), ("Does the line tell it?", ("misses", "tells")),
    ))),
    (1.3, Skill(_reference, (
        ("Is that who was meant?", ("mistaken", "meant")), ("Is the person right?", ("someone else", "that one")),
        ("Who is it?", ("another", "this")),
        ("Does the name fit?", ("misfit", "fits")), ("Read well?", ("misread", "well read")),
    ))),
)  # fmt: skip
_ROOTS = tuple(weight for weight, _ in SKILLS)
_GRADED = (
    "How close are they from 0 to 10 ?", "Overlap out of 10 :", "Rate the likeness 0.0 to 10.0",
    "likeness on ten points",
    "Near or far in tenths ?", "score of the pair =",
)  # fmt: skip
_CHANGES = ("What changed?", "List the changes.", "Spot the change.")
_PARTS = {"agent": "doer", "patient": "target", "verb": "deed", "swap": "roles", "negation": "denial",
    "adverb": "manner", "adjective": "quality", "place": "place", "time": "time", "all": "everything"}  # fmt: skip


def _genre(rng: Random) -> Genre:
    return EVERYDAY if rng.random() < 0.75 else SEASIDE


def drill(rng: Random, variety: float = 1.0) -> Document:
    """One drill: texts, a way to ask, and the answer word; `variety` is the share of the formats in use."""
    skill = rng.choices(SKILLS, weights=_ROOTS)[0][1]
    texts, label = skill.draw(rng, _genre(rng))
    while any(map(reserved, texts)):
        texts, label = skill.draw(rng, _genre(rng))
    request, words = _pick(rng, skill.asks, variety)
    if rng.random() < 0.4 * variety:
        request += f" ({' or '.join(rng.sample(words, k=len(words)))})"
    return Document(prompt=_shape(rng, texts, request, variety), answer=words[label])


def _pick(rng: Random, options: Sequence[T], variety: float) -> T:
    return options[rng.randrange(max(1, round(variety * len(options))))]


def _shape(rng: Random, texts: tuple[str, ...], request: str, variety: float = 1.0) -> str:
    shell = _pick(rng, _ONE if len(texts) == 1 else _TWO, variety)
    return shell.format(a=texts[0], b=texts[-1], ask=request, cue=_pick(rng, _CUES, variety))


def graded(rng: Random, variety: float = 1.0) -> Document:
    """How alike two sentences are, from 0.0 to 10.0, or what changed from the first to the second."""
    pair = compare(rng, _genre(rng))
    while reserved(pair.first) or reserved(pair.second):
        pair = compare(rng, _genre(rng))
    texts = (pair.first, pair.second)
    if rng.random() < 0.6:
        prompt = _shape(rng, texts, _pick(rng, _GRADED, variety), variety)
        return Document(prompt=prompt, answer=f"{2 * pair.grade:.1f}")
    changed = " and ".join(sorted(_PARTS[kind] for kind in pair.changed)) or "nothing"
    return Document(prompt=_shape(rng, texts, _pick(rng, _CHANGES, variety), variety), answer=changed)


# How many documents it takes from drills in one format to drills in all of them.
_WIDENING = 80_000


def documents(seed: int, *, one_format: int = 60_000) -> Iterator[Document]:
    """An endless stream of documents; equal for equal arguments.

    A skill is learnt soonest in one format: the drills of the first `one_format` documents all have the same, and the
    other formats come in one by one after that.
    """
    rng = Random(seed)
    for index in count():
        variety = min(1.0, max(0.0, (index - one_format) / _WIDENING))
        kind = rng.random()
        if kind < 0.65:
            yield drill(rng, variety)
        elif kind < 0.76:
            yield graded(rng, variety)
        else:
            prompt, answer = rng.choice(PROSE)(rng, _genre(rng))
            yield Document(prompt=prompt, answer=answer)
