"""Training examples from the same lm-eval task object that makes the evaluation prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mtlbench.compat import continuation, label_and_choices, multiple_input
from mtlbench.data.lm_task import quiet_lm_eval
from mtlbench.errors import DataError

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """Prompt and answer of an example, as text."""

    context: str
    target: str


def training_pairs(
    lm_task: ConfigurableTask,
    rows: Sequence[int] | None = None,
    *,
    chat: Callable[..., str] | None = None,
    docs: Any = None,
) -> list[Pair]:
    """Context and gold answer of the training examples with the indices ``rows``, or of all, as lm-eval scores them.

    Multiple choice uses the request of the gold choice, including the delimiter; generation uses the target text.

    Args:
        chat: Renders messages as a prompt, with ``add_generation_prompt``; ``None`` joins them as plain text.
        docs: All training examples, where the caller has them.

    Raises:
        DataError: naming the row with an invalid label or text.
    """
    with quiet_lm_eval():
        docs = lm_task.training_docs() if docs is None else docs
    return _each(lm_task, lm_task.config.training_split, docs, rows, partial(gold_pair, chat=chat))


def evaluation_golds(lm_task: ConfigurableTask, rows: Sequence[int] | None = None) -> list[int] | None:
    """Gold choices of the evaluation examples with the indices ``rows``, or of all; ``None`` for tasks without choices.

    Raises:
        DataError: naming the row with an invalid label.
    """
    if lm_task.OUTPUT_TYPE != "multiple_choice":
        return None
    with quiet_lm_eval():
        docs = lm_task.validation_docs()
    return _each(lm_task, lm_task.config.validation_split, docs, rows, gold_index)


def gold_pair(lm_task: ConfigurableTask, doc: dict[str, Any], *, chat: Callable[..., str] | None = None) -> Pair:
    """The training pair of one row; ``chat`` as in :func:`training_pairs`.

    Raises:
        ValueError: the label is not one of the choices, or the output type has no gold answer.
    """
    context = prompt_of(lm_task, doc, shots=lm_task.config.num_fewshot, chat=chat)
    if lm_task.OUTPUT_TYPE == "generate_until":
        return Pair(context, gold_text(lm_task, doc))
    requests = requests_of(lm_task, doc, context, chat=chat)
    if lm_task.OUTPUT_TYPE == "loglikelihood":
        return Pair(*requests.args)
    if lm_task.OUTPUT_TYPE == "multiple_choice":
        return Pair(*requests[gold_index(lm_task, doc)].args)
    raise ValueError(f"output type {lm_task.OUTPUT_TYPE!r} has no answer to learn")


def prompt_of(
    lm_task: ConfigurableTask, doc: dict[str, Any], *, shots: int, chat: Callable[..., str] | None = None
) -> Any:
    """The prompt of one row behind ``shots`` examples, as lm-eval makes it: a text, or for tasks with several
    contexts a list; ``chat`` as in :func:`training_pairs`."""
    return lm_task.fewshot_context(
        doc,
        shots,
        gen_prefix=lm_task.doc_to_prefix(doc),
        fewshot_as_multiturn=chat is not None,
        **_turns(chat),
    )


def requests_of(
    lm_task: ConfigurableTask, doc: dict[str, Any], context: Any, *, chat: Callable[..., str] | None = None
) -> Any:
    """lm-eval's requests of one row with its prompt: one, or a list."""
    return lm_task.construct_requests(doc=doc, ctx=context, metadata=(None, None, None), **_turns(chat))


def _turns(chat: Callable[..., str] | None) -> dict[str, Any]:
    return {"apply_chat_template": chat is not None, "chat_template": chat}


def gold_index(lm_task: ConfigurableTask, doc: dict[str, Any]) -> int:
    """Index of the gold choice of one row; of several the first, as in lm-eval's few-shot examples.

    Raises:
        ValueError: the label is not one of the choices.
    """
    return gold_indices(lm_task, doc)[0]


def gold_indices(lm_task: ConfigurableTask, doc: dict[str, Any]) -> list[int]:
    """Indices of all gold choices of one row, at least one.

    Raises:
        ValueError: a label is not one of the choices, or there is none.
    """
    gold, choices = label_and_choices(lm_task, doc)
    if not isinstance(gold, list):
        return [_choice(gold, choices)]
    if not gold:
        raise ValueError(f"no label says which of {choices} is right")
    return [_choice(label, choices) for label in gold]


def _choice(label: Any, choices: list[str]) -> int:
    if isinstance(label, str) and label in choices:
        return int(choices.index(label))
    if not isinstance(label, int):
        raise ValueError(f"the label {label!r} is neither the number nor the text of one of {choices}")
    if not 0 <= label < len(choices):
        raise ValueError(f"the label {label} is not the number of one of {len(choices)} choices {choices}")
    return int(label)


def gold_text(lm_task: ConfigurableTask, doc: dict[str, Any]) -> str:
    """The reference text for a generated answer of one row; of several the first.

    Raises:
        ValueError: the label is not one of the choices.
    """
    if lm_task.config.doc_to_choice is not None:
        return str(lm_task.doc_to_choice(doc)[gold_index(lm_task, doc)])
    gold = lm_task.doc_to_target(doc)
    return str(gold[0] if isinstance(gold, list) else gold)


def question(lm_task: ConfigurableTask, doc: dict[str, Any]) -> tuple[str, ...]:
    """The prompt without few-shot examples, and the choices; for a task with several inputs also the continuation.

    Rows for which this is equal ask the same.
    """
    made = lm_task.fewshot_context(doc, 0)
    choices = label_and_choices(lm_task, doc)[1] if lm_task.config.doc_to_choice is not None else []
    rest = [continuation(lm_task, doc)] if multiple_input(lm_task) else []
    return (*([made] if isinstance(made, str) else made), *map(str, choices), *rest)


def _each(
    lm_task: ConfigurableTask,
    split: str,
    docs: Any,
    rows: Sequence[int] | None,
    make: Callable[[ConfigurableTask, dict[str, Any]], T],
) -> list[T]:
    numbers = range(len(docs)) if rows is None else rows
    results: list[T] = []
    for number, doc in zip(numbers, docs if rows is None else docs.select(rows), strict=True):
        try:
            results.append(make(lm_task, doc))
        except Exception as error:
            raise DataError(
                f"Row {number} of split {split!r} of task {lm_task.config.task!r} cannot be used: {error}. "
                "Repair or remove the row."
            ) from error
    return results
