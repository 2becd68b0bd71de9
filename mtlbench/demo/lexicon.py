"""The words of the demo language and how they relate: forms, synonyms, antonyms, kinds, sentiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb with the forms the grammar needs, as in `buy buys bought bought`."""

    base: str
    third: str
    past: str
    participle: str


@dataclass(frozen=True)
class Sense:
    """Verbs that mean the same (`same`) and verbs that mean the opposite (`opposite`)."""

    same: tuple[str, ...]
    opposite: tuple[str, ...]


@dataclass(frozen=True)
class Genre:
    """The nouns one kind of text draws from: people, things, animals and places."""

    people: tuple[str, ...]
    things: tuple[str, ...]
    animals: tuple[str, ...]
    places: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _third(base: str) -> str:
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")


def _regular(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + "ed"


_IRREGULAR = {
    "buy": ("bought", "bought"), "sell": ("sold", "sold"), "find": ("found", "found"), "lose": ("lost", "lost"),
    "break": ("broke", "broken"), "drop": ("dropped", "dropped"), "hide": ("hid", "hidden"),
    "show": ("showed", "shown"),
    "build": ("built", "built"), "take": ("took", "taken"), "keep": ("kept", "kept"), "draw": ("drew", "drawn"),
    "see": ("saw", "seen"), "spot": ("spotted", "spotted"), "teach": ("taught", "taught"), "feed": ("fed", "fed"),
    "ride": ("rode", "ridden"), "catch": ("caught", "caught"), "bring": ("brought", "brought"),
    "free": ("freed", "freed"),
    "run": ("ran", "run"), "sleep": ("slept", "slept"), "sing": ("sang", "sung"), "swim": ("swam", "swum"),
    "choose": ("chose", "chosen"), "lend": ("lent", "lent"), "fit": ("fitted", "fitted"),
}  # fmt: skip


def _verb(base: str) -> Verb:
    past, participle = _IRREGULAR.get(base) or (_regular(base), _regular(base))
    return Verb(base=base, third=_third(base), past=past, participle=participle)


def _senses(table: str) -> tuple[Sense, ...]:
    """One sense per line, `same same : opposite opposite`; every sense with an opposite also gives its mirror."""
    senses: list[Sense] = []
    for line in table.strip().splitlines():
        left, _, right = line.partition(":")
        senses.append(Sense(same=_words(left), opposite=_words(right)))
        if right.strip():
            senses.append(Sense(same=_words(right), opposite=_words(left)))
    return tuple(senses)


HE_NAMES = _words("Tom Ben Sam Jack Paul Mark Peter David Henry Oscar Felix Hugo Leo Adam Carl Simon")
SHE_NAMES = _words("Anna Mary Lucy Emma Jane Sara Nora Alice Clara Ella Rosa Vera Julia Helen Ruth Grace")

EVERYDAY = Genre(
    people=_words(
        "teacher baker doctor physician nurse lawyer attorney "
        "driver painter singer writer farmer gardener clerk"
    ),
    things=_words(
        "apple pear plum carrot onion potato hammer saw spade car "
        "automobile truck wagon violin drum flute doll kite coat hat scarf"
    ),
    animals=_words("dog cat horse cow goat crow robin eagle"),
    places=_words("market park garden kitchen shop store library museum station barn street road"),
)  # fmt: skip
SEASIDE = Genre(
    people=_words("sailor mariner captain pilot diver cook guard"),
    things=_words("canoe ferry pearl ruby lamp lantern net rope barrel"),
    animals=_words("seal turtle trout salmon gull"),
    places=_words("harbor beach island lighthouse bay ship"),
)

KINDS: Mapping[str, tuple[str, ...]] = {
    "fruit": _words("apple pear plum"), "vegetable": _words("carrot onion potato"),
    "tool": _words("hammer saw spade net rope"),
    "vehicle": _words("car automobile truck wagon"), "instrument": _words("violin drum flute"),
    "toy": _words("doll kite"),
    "garment": _words("coat hat scarf"), "boat": _words("canoe ferry"), "gem": _words("pearl ruby"),
    "container": _words("barrel"), "light": _words("lamp lantern"),
    "animal": _words("dog cat horse cow goat seal turtle"),
    "bird": _words("crow robin eagle gull"), "fish": _words("trout salmon"), "artist": _words("painter singer writer"),
    "person": _words(
        "teacher baker doctor physician nurse lawyer attorney driver farmer "
        "gardener clerk sailor mariner captain pilot diver cook guard"
    ),
}  # fmt: skip
KIND_OF: Mapping[str, str] = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}

THING_SENSES = _senses("""
buy purchase : sell
find discover : lose
fix repair : break damage
lift raise : drop lower
hide conceal : show reveal
push : pull
build construct : destroy wreck
accept take : refuse reject
keep : discard
choose select
paint
draw
carry
bring fetch
""")
PERSON_SENSES = _senses("""
help assist : hinder
praise commend : blame criticize
hire employ : dismiss
love adore : hate despise
trust : doubt
greet welcome : ignore
see notice
call phone
visit
thank
follow
teach
""")
ANIMAL_SENSES = _senses("""
catch capture : free release
calm : scare frighten
chase pursue
feed
ride
wash
""")
ACTIONS = _words("run sleep sing swim work dance wait smile laugh cough")
VERBS: Mapping[str, Verb] = {
    base: _verb(base)
    for base in dict.fromkeys(
        [word for sense in (*THING_SENSES, *PERSON_SENSES, *ANIMAL_SENSES) for word in sense.same] + list(ACTIONS)
    )
}

ADJECTIVE_SENSES = _senses("""
big large : small little
old ancient : new
heavy : light
clean : dirty
expensive costly : cheap
""")
COLOURS = _words("red blue green white black yellow brown")
ADVERB_SENSES = _senses("""
quickly rapidly : slowly
quietly silently : loudly
gladly happily : sadly
carefully : carelessly
""")
NOUN_SENSES = _senses("""
doctor physician
lawyer attorney
car automobile
shop store
street road
sailor mariner
lamp lantern
""")
TIMES = (
    "yesterday",
    "today",
    "last week",
    "last year",
    "this morning",
    "on Monday",
    "on Friday",
    "on Sunday",
    "in May",
    "in June",
)

GOOD: Mapping[str, int] = {
    **dict.fromkeys(_words("wonderful superb brilliant delightful excellent perfect amazing"), 3),
    **dict.fromkeys(_words("good nice charming pleasant funny clever fresh lovely enjoyable"), 2),
    **dict.fromkeys(_words("fine decent solid sweet"), 1),
}
BAD: Mapping[str, int] = {
    **dict.fromkeys(_words("awful terrible dreadful horrible dismal dire hideous"), 3),
    **dict.fromkeys(_words("bad dull boring poor ugly stupid stale messy tedious"), 2),
    **dict.fromkeys(_words("weak flat bland thin"), 1),
}
GOOD_VERBS = _words("enjoyed liked loved admired")
BAD_VERBS = _words("disliked hated regretted endured")
SHOWS = _words("film movie play book novel show story song concert comedy drama meal")
PARTS = _words("plot cast ending music script acting dialogue scenery pace humor")


def _index(senses: Sequence[Sense]) -> dict[str, Sense]:
    return {word: sense for sense in senses for word in sense.same}


SENSE_OF: Mapping[str, Sense] = _index(
    (*THING_SENSES, *PERSON_SENSES, *ANIMAL_SENSES, *ADJECTIVE_SENSES, *ADVERB_SENSES, *NOUN_SENSES)
)


def synonyms(word: str) -> tuple[str, ...]:
    """The other words of the same meaning, or nothing."""
    sense = SENSE_OF.get(word)
    return tuple(other for other in sense.same if other != word) if sense else ()


def antonyms(word: str) -> tuple[str, ...]:
    """The words of the opposite meaning, or nothing."""
    sense = SENSE_OF.get(word)
    return sense.opposite if sense else ()
