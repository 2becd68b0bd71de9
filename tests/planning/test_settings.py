"""Settings in brackets: typed, checked, and refused with the nearest name before any compute."""

from __future__ import annotations

import pytest

from mtlbench.errors import RequestError
from mtlbench.planning.settings import build, read_settings, split_methods


def test_names_and_brackets():
    assert split_methods("peml,lora[rank=16, alpha=32],base[]") == [
        ("peml", {}),
        ("lora", {"rank": "16", "alpha": "32"}),
        ("base", {}),
    ]
    assert split_methods(" peml , lora[rank=16] + base,ia3 ") == [
        ("peml", {}),
        ("lora+base", {"lora.rank": "16"}),
        ("ia3", {}),
    ]


@pytest.mark.parametrize(
    "words",
    [
        "",
        ",",
        "lora[rank=1",
        "lora]rank",
        "lora[[rank=1]]",
        "lora[rank]",
        "lora[rank=1,rank=2]",
        "a,,b",
        "a b",
        "lora [rank=1]",
        "lora\t",
        "lora,\nia3",
    ],
)
def test_words_that_cannot_be_read(words: str):
    with pytest.raises(RequestError):
        split_methods(words)


def test_values_take_the_type_of_the_field():
    assert read_settings("lora", {"rank": "4", "learning_rate": "1e-4"}) == {"rank": 4, "learning_rate": 1e-4}
    assert read_settings("lora", {"learning_rate": "none"}) == {"learning_rate": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rnk": "4"}, r"no setting 'rnk'\. Did you mean 'rank'"),
        ({"rank": "four"}, "rank must be a whole number, got 'four'"),
        ({"rank": "1.5"}, "rank must be a whole number, got '1.5'"),
        ({"rank": "-4"}, "rank.*-4"),
        ({"rank": "0"}, "rank.*0"),
        ({"learning_rate": "-1"}, "learning_rate"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"dropout": "1.5"}, "dropout"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings: dict[str, str], message: str):
    with pytest.raises(RequestError, match=message):
        read_settings("lora", settings)


def test_build_gives_the_method_with_its_settings():
    assert build("lora", {"rank": 4}).settings()["rank"] == 4


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ("prefixnas+lora", [("prefixnas+lora", {})]),
        (
            "prefix[prefix_length=4]+lora[target=q+v],peml",
            [("prefix+lora", {"prefix.prefix_length": "4", "lora.target": "q+v"}), ("peml", {})],
        ),
        ("prefix+lora[rank=2]+[order=in_turn]", [("prefix+lora", {"lora.rank": "2", "order": "in_turn"})]),
    ],
)
def test_methods_joined_by_plus_are_one(words, split):
    assert split_methods(words) == split


@pytest.mark.parametrize("words", ["prefix+", "+lora", "prefix++lora", "lora+[order=in_turn]", "prefix+lora+[a=1]+x"])
def test_a_composition_that_cannot_be_read_says_where(words):
    with pytest.raises(RequestError, match="Cannot read"):
        split_methods(words)
