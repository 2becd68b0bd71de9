"""Whether a model trained on a task's examples answers them better than a constant answer.

The toy model is a two-layer Llama with random weights and the demo's tokenizer. All its weights are trained on a few
training examples, and it is scored on the same examples, with the code that a run uses. It has to memorise them. That
fails if the trained answer is not the scored one, if prompts do not distinguish examples, or if the metric cannot parse
a generated answer. It says nothing about other examples: labels that are wrong in the same way in training and scoring
can be memorised too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Setup, SetupTask
from mtlbench.api.routing import Routing
from mtlbench.api.task import Task
from mtlbench.backbones.names import BACKBONES
from mtlbench.conformance.answers import best_constant, generates
from mtlbench.conformance.toys import tiny_causal
from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import choose_rows, load_lm_task
from mtlbench.evaluation.evaluate import evaluate
from mtlbench.nn.linears import projection_names, shapes_of
from mtlbench.planning.settings import build
from mtlbench.tokens.encode import encode_rows
from mtlbench.training.batches import Collator
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import Splits

if TYPE_CHECKING:
    import datasets

    from mtlbench.compat import ConfigurableTask

ROWS = 24
"""Maximum number of training examples of a task that the toy model memorises."""
ROUNDS = (80, 240)
"""Steps of the first attempt, and of the second if the first was not enough."""
MAX_LENGTH = 256
_RATE = 3e-3


@dataclass(frozen=True)
class Learned:
    """Scores of a trained toy model and of a constant answer, in percent."""

    score: float
    constant: float
    """Of the best constant answer."""
    rows: int

    @property
    def beats_chance(self) -> bool:
        """Whether the score is more than half-way from the constant answer to a perfect score."""
        return self.score > (self.constant + 100) / 2


def learn(task: Task, splits: Mapping[str, datasets.Dataset], *, name: str) -> Learned:
    """Train a toy model on examples of the training split and score it on them."""
    rows = splits[task.train_split]
    few = rows.select(choose_rows(len(rows), ROWS))
    lm_task = load_lm_task(task, {**splits, task.train_split: few, task.eval_split: few}, name=name)
    constant = best_constant(lm_task, task)
    with _one_thread():
        for steps in ROUNDS:
            learned = Learned(_trained(lm_task, task, name, steps=steps), constant, len(few))
            if learned.beats_chance:
                break
    return learned


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, because on a busy machine synchronising threads costs far more than this small model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _trained(lm_task: ConfigurableTask, task: Task, name: str, *, steps: int) -> float:
    """Score of a toy model after ``steps`` steps, each on all examples."""
    tokenizer = _tokenizer()
    rows = encode_rows(
        tokenizer,
        training_pairs(lm_task),
        task=0,
        architecture="causal",
        max_length=MAX_LENGTH,
        append_eos=generates(lm_task),
    )
    model, routing = _toy(tokenizer), Routing()
    method = build("full", {"learning_rate": _RATE})
    protocol = Protocol(steps=steps, batch_size=len(rows), held_out=0.0, evals_per_run=0, dtype="float32")
    job = TrainingJob(
        model=model,
        method=method,
        splits=Splits(rows, [], []),
        protocol=protocol,
        tasks=1,
        routing=routing,
        collator=Collator("causal", tokenizer.pad_token_id, None, torch.device("cpu")),
        seed=0,
    )
    loop = Loop(job)
    targets = projection_names(model)
    setup = Setup(
        tasks=(SetupTask(0, name, len(rows)),),
        routing=routing,
        architecture="causal",
        target_modules=targets,
        shapes=shapes_of(model, targets),
        total_steps=loop.total_steps,
        max_length=MAX_LENGTH,
        seed=0,
    )
    method.attach(model, setup)
    method.fit(model, loop)
    result = evaluate(
        model.eval(),
        tokenizer,
        architecture="causal",
        lm_tasks={name: lm_task},
        task_ids={name: 0},
        metrics={name: task.metrics},
        routing=routing,
        max_length=MAX_LENGTH,
        token_budget=4096,
        eval_rows=None,
    )
    return result.scores[name].score


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(BACKBONES / "demo"))


def _toy(tokenizer: Any) -> torch.nn.Module:
    return tiny_causal(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_key_value_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class ParameterWatch:
    """Records gradients and changes of every trainable parameter of ``model``, including parameters added in training.

    Call :meth:`look` after each step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first: dict[str, tuple[Tensor, Tensor]] = {}
        self.fed: set[str] = set()
        """Names of parameters that got a non-zero gradient."""
        self.not_finite: set[str] = set()
        """Names of parameters that got a gradient with NaN or infinity."""
        self.moved: set[str] = set()
        """Names of parameters whose value changed."""
        self.look()

    def look(self) -> None:
        """Record which parameters changed, and register new ones."""
        for name, p in self._model.named_parameters():
            known, value = self._first.get(name, (None, None))
            if known is p and value is not None:
                if not torch.equal(value, p):
                    self.moved.add(name)
            elif p.requires_grad:
                self._first[name] = (p, p.detach().clone())
                p.register_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        # A hook sees every gradient, also one computed without .grad or cleared before the step ends.
        def see(grad: Tensor) -> None:
            if not grad.isfinite().all():
                self.not_finite.add(name)
            elif grad.any():
                self.fed.add(name)

        return see
