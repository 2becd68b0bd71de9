"""Demo data of the joint commonsense instructions: the commonsense demo rows in LLM-Adapters' words.

BoolQ has no passage there, so its demo questions bring along all that decides them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from random import Random

from mtlbench.demo.language import infer
from mtlbench.demo.lexicon import EVERYDAY
from mtlbench_tasks.demo_commonsense import commonsense_rows
from mtlbench_tasks.demo_rows import Row, draw_splits, inside

SPLITS: Mapping[str, str] = {"train": "train", "test": "validation"}
"""Split to the split of the commonsense demo that it is made from."""
SIZES = {"train": 320, "test": 80}


def _boolq(rng: Random) -> tuple[str, list[Row]]:
    right = rng.random() < 0.5
    pair = infer(rng, EVERYDAY, "follows" if right else "clashes")
    asked = f"if {inside(pair.premise)}, is it true that {inside(pair.hypothesis)}?"
    text = f"Please answer the following question with true or false, question: {asked}"
    return pair.premise, [_row(f"{text}\n\nAnswer format: true/false", "true" if right else "false")]


def _piqa(row: Row) -> Row:
    text = f"Please choose the correct solution to the question: {row['goal']}"
    shown = "".join(f"\n\nSolution{n}: {row[f'sol{n}']}" for n in (1, 2))
    return _row(f"{text}{shown}\n\nAnswer format: solution1/solution2", f"solution{row['label'] + 1}")


def _social_iqa(row: Row) -> Row:
    return _question(f"{row['context']} {row['question']}", [row[f"answer{x}"] for x in "ABC"], int(row["label"]) - 1)


def _hellaswag(row: Row) -> Row:
    text = f"Please choose the correct ending to complete the given sentence: {row['activity_label']}: {row['ctx']}"
    return _row(f"{text}\n\n{_listed('ending', row['endings'])}", f"ending{int(row['label']) + 1}")


def _winogrande(row: Row) -> Row:
    text = "Please choose the correct answer to fill in the blank to complete the given sentence: " + row["sentence"]
    options = f"Option1: {row['option1']} Option2: {row['option2']}"
    return _row(f"{text}\n\n{options} Answer format: option1/option2", f"option{row['answer']}")


def _arc(row: Row) -> Row:
    asked = row.get("question") or row["question_stem"]
    return _question(asked, row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


def _question(asked: str, answers: list[str], right: int) -> Row:
    text = f"Please choose the correct answer to the question: {asked}"
    return _row(f"{text}\n\n{_listed('answer', answers)}", f"answer{right + 1}")


def _listed(stem: str, texts: list[str]) -> str:
    shown = " ".join(f"{stem.capitalize()}{n}: {text}" for n, text in enumerate(texts, 1))
    return f"{shown}\n\nAnswer format: {'/'.join(f'{stem}{n}' for n in range(1, len(texts) + 1))}"


def _row(instruction: str, answer: str) -> Row:
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


_FROM: Mapping[str, tuple[str, str | None, Callable[[Row], Row]]] = {
    "piqa": ("baber/piqa", None, _piqa),
    "social_i_qa": ("lighteval/siqa", None, _social_iqa),
    "hellaswag": ("Rowan/hellaswag", None, _hellaswag),
    "winogrande": ("allenai/winogrande", "winogrande_xl", _winogrande),
    "ARC-Easy": ("allenai/ai2_arc", "ARC-Easy", _arc),
    "ARC-Challenge": ("allenai/ai2_arc", "ARC-Challenge", _arc),
    "openbookqa": ("allenai/openbookqa", "main", _arc),
}
CONFIGS = ("boolq", *_FROM)


def instruction_rows(config: str, split: str) -> list[Row]:
    """The rows of one split (`train` or `test`) of one set, with LLM-Adapters' columns.

    Raises:
        KeyError: the set or the split is not there.
    """
    if config not in CONFIGS:
        raise KeyError(f"no set {config!r} of instructions: known are {', '.join(CONFIGS)}")
    if split not in SPLITS:
        raise KeyError(f"no split {split!r} in {config!r}: known are {', '.join(SPLITS)}")
    if config == "boolq":
        return [dict(row) for row in _boolq_splits()[split]]
    dataset, original, render = _FROM[config]
    return [render(row) for row in commonsense_rows(dataset, original, SPLITS[split])]


@cache
def _boolq_splits() -> dict[str, list[Row]]:
    return draw_splits("llm_adapters/boolq", _boolq, SIZES)
