"""The prose of the pretraining text: each function gives an opening and how it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from mtlbench.demo.grammar import (
    draw_event,
    draw_person,
    question,
    question_slots,
    sentence,
    short_answer,
    statement,
)
from mtlbench.demo.judgements import judge
from mtlbench.demo.language import compare, compare_questions, infer, reserved, surface
from mtlbench.demo.lexicon import (
    BAD,
    GOOD,
    HE_NAMES,
    KINDS,
    SENSE_OF,
    SHE_NAMES,
    SHOWS,
    Genre,
    antonyms,
    synonyms,
)
from mtlbench.demo.opinions import opinion
from mtlbench.demo.pronouns import refer

# A first sentence, with its mark; an opinion is written without one.
_OPENING = re.compile(r"^[a-z][^.]+(?= \.)|^[^.?]+[.?]")
_AGAIN = (
    "Go and see it.", "I would see it again.", "It made me happy.", "It was worth the money.", "What a joy it was.",
)  # fmt: skip
_NEVER = (
    "Stay at home.", "I left early.", "It made me angry.", "It was a waste of money.", "What a pain it was.",
)  # fmt: skip
# Everyday uses of words that prompts are made of, so that they are words to the backbones and not strings of bytes.
_CLASSROOM = (
    "{a} asked the class a question and waited for an answer.",
    "The teacher wrote one sentence and read both sentences again.",
    "Does this make sense to {a}?", "{a} and {b} mean well and say the same thing.",
    "Question after question came from {a}.",
    "{a} gave a short response.", "Answer me soon, said {a}.", "Sentence by sentence, {a} read the page.",
    "{a} took a positive view. {b} had a negative one.", "It was a lucky day. True friends came to see {a}.",
    "{a} sat down. Neither {b} nor the dog moved.", "{a} was there. False teeth lay in the glass.",
    "It is not false to say that {a} is a true friend.", "{a} has no time today, and yes, {b} is late.",
    "Do both ask for {a}?",
    "Do these say the same, asked {b}.", "The similarity of {a} and {b} is great. Similarity is a long word.",
    "{a} paid {x} coins for {y} pounds of bread.",
    "The road is {x} miles long and {b} ran {y} of them.", "{a} has {x} points and {b} has {y}.",
)  # fmt: skip

Prose = tuple[str, str]


def story(rng: Random, genre: Genre) -> Prose:
    """Three events of one person, who is a pronoun after the first."""
    he = rng.random() < 0.5
    name = rng.choice(HE_NAMES if he else SHE_NAMES)
    lines = []
    for index in range(3):
        event = draw_event(rng, genre, modifiers=2)
        words = statement(event).split()
        start = 2 if event.agent.article else 1
        lines.append(" ".join([name if index == 0 else ("He" if he else "She"), *words[start:]]))
    return lines[0], " ".join(lines[1:])


def restated(rng: Random, genre: Genre) -> Prose:
    """A sentence or a question and the same in other words."""
    pair = compare(rng, genre, count=0) if rng.random() < 0.7 else compare_questions(rng, genre, same=True)
    link = rng.choice(("In other words,", "That is,", "Put differently:", "Or:"))
    return f"{pair.first} {link}", pair.second


def concluded(rng: Random, genre: Genre) -> Prose:
    """A premise with what follows, what may be, and what cannot be."""
    label, links = rng.choice((
        ("follows", ("So", "Hence", "Therefore", "It is clear:")),
        ("open", ("It may be, but was not said:", "Perhaps:", "We cannot tell if:")),
        ("clashes", ("It is wrong to say:", "It cannot be:", "A lie:")),
    ))  # fmt: skip
    pair = infer(rng, genre, label)  # type: ignore[arg-type]
    return f"{pair.premise} {rng.choice(links)}", pair.hypothesis


def asked(rng: Random, genre: Genre) -> Prose:
    """An event, a question about it and the short answer."""
    event = draw_event(rng, genre, modifiers=3)
    slot = rng.choice(question_slots(event))
    wanted = question(event, slot, passive=rng.random() < 0.35, long=rng.random() < 0.3)
    told = surface(event, rng)
    opening = f"{told} {wanted}" if rng.random() < 0.7 else f"{wanted} {told} That is:"
    return opening, sentence(short_answer(event, slot))


def reviewed(rng: Random, genre: Genre) -> Prose:
    """Opinions of one mind about one show, and how it ends."""
    good = rng.random() < 0.5
    show = rng.choice(SHOWS)
    lines = [
        opinion(rng, good=good, subject=f"the {show}" if index == 0 else None) for index in range(rng.randint(1, 2))
    ]
    return " . ".join(lines) + " .", rng.choice(_AGAIN if good else _NEVER)


def defined(rng: Random, genre: Genre) -> Prose:
    """What a word means: its kind, another word for it, its opposite, its tone."""
    which = rng.random()
    if which < 0.3:
        kind = rng.choice(list(KINDS))
        noun = rng.choice(KINDS[kind])
        article = "An" if noun[0] in "aeiou" else "A"
        return f"{article} {noun} is a kind of", f"{kind}."
    if which < 0.5:
        word = rng.choice([*GOOD, *BAD])
        return f"To call it {word} is", "praise." if word in GOOD else "blame."
    word = rng.choice([each for each in SENSE_OF if (synonyms(each) if which < 0.75 else antonyms(each))])
    if which < 0.75:
        return f"Another word for {word} is", f"{rng.choice(synonyms(word))}."
    return f"The opposite of {word} is", f"{rng.choice(antonyms(word))}."


def corrected(rng: Random, genre: Genre) -> Prose:
    """A broken sentence and the repaired one."""
    good, broken = judge(rng, genre)
    while reserved(good):
        good, broken = judge(rng, genre)
    link = rng.choice(("It should be:", "Better:", "Repaired:", "The right way:"))
    return f"{broken} {link}", good


def referred(rng: Random, genre: Genre) -> Prose:
    """A pronoun and who was meant."""
    pair = refer(rng)
    if rng.random() < 0.5:
        return f"{pair.text} So", pair.right
    return f"{pair.text} It is not that", pair.wrong


def classroom(rng: Random, genre: Genre) -> Prose:
    """Everyday sentences with the words that prompts are made of, and with numbers."""
    first, second = draw_person(rng, genre), draw_person(rng, genre)
    lines = rng.sample(_CLASSROOM, k=2)
    x, y = (f"{rng.randint(0, 99) / 10:.1f}" for _ in range(2))
    text = [line.format(a=first.text(), b=second.text(), x=x, y=y) for line in lines]
    return text[0], text[1]


def _unreserved(write: Callable[[Random, Genre], Prose]) -> Callable[[Random, Genre], Prose]:
    """`write`, drawn again while one of its texts opens with a sentence that belongs to the tasks."""

    def draw(rng: Random, genre: Genre) -> Prose:
        while True:
            prompt, answer = write(rng, genre)
            if not any(reserved(text) for text in _OPENING.findall(prompt)[:1]):
                return prompt, answer

    return draw


PROSE = tuple(
    _unreserved(write)
    for write in (story, restated, restated, restated, concluded, concluded, asked, asked, reviewed, defined, defined,
        corrected, corrected, referred, classroom, classroom)
)  # fmt: skip
