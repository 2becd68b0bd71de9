"""The sides of a comparison: each can run a training step on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from backbones import TASKS, fresh
from timing import saved_tensor_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtlbench.api.method import Method, Setup
from mtlbench.api.routing import Routing
from mtlbench.errors import RequestError
from mtlbench.testing import setup_for
from mtlbench.training.batches import Batch
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench.training.objective import objective_of
from mtlbench.training.optimizer import make_optimizer, take_step
from mtlbench.training.tail import narrow_tail

RATE = 1e-5
"""Learning rate: small, as the same rows are trained on again and again."""


@dataclass(frozen=True)
class Precision:
    """How every side computes."""

    autocast: torch.dtype | None = None
    checkpointing: bool = False


class Side:
    """A model with its optimizer.

    Args:
        objective: The loss to minimise from the row losses ``[rows]``.
        groups: Of the optimizer; none to leave it out.
        after: Called with the step's number behind the optimizer.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        routing: Routing,
        precision: Precision,
        *,
        objective: Callable[[Tensor], Tensor] = Tensor.mean,
        groups: Sequence[dict[str, Any]] = (),
        after: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.batch, self.routing, self.precision = model.train(), batch, routing, precision
        self.objective, self.after = objective, after
        self.optimizer = make_optimizer("adamw", groups, learning_rate=RATE, weight_decay=0.0) if groups else None
        self.steps = 0
        self._open = ExitStack()
        if precision.checkpointing:
            self._open.enter_context(checkpointing(model))

    def loss(self, *, all_logits: bool) -> Tensor:
        """The objective; logits for every token of the decoder, as Hugging Face models compute them, or at labels."""
        dtype, device = self.precision.autocast, self.batch.tasks.device.type
        context: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)
        with context, self.routing.of(self.batch.tasks):
            losses = (_all_logits if all_logits else row_losses)(self.model, self.batch, self.routing)
            return self.objective(losses)

    def backward(self, *, all_logits: bool) -> Tensor:
        """The loss, with its gradients left in the parameters."""
        with self.routing.of(self.batch.tasks), self._narrow(all_logits):
            loss = self.loss(all_logits=all_logits)
            torch.autograd.backward(loss)
        return loss.detach()

    def _narrow(self, all_logits: bool) -> AbstractContextManager[None]:
        """As in our training loop: the last layer only where there are labels."""
        return narrow_tail(self.model, None if all_logits else self.batch.answers, self.routing)

    def step(self, *, all_logits: bool) -> None:
        """Forward, backward, optimizer."""
        self.backward(all_logits=all_logits)
        if self.optimizer is not None:
            take_step(self.optimizer, 1.0)
        if self.after is not None:
            self.after(self.steps)
        self.steps += 1
        self.clear()

    def clear(self) -> None:
        """Drop all gradients."""
        for tensor in [*self.model.parameters(), *self.batch.inputs.values()]:
            tensor.grad = None

    def saved_bytes(self, *, all_logits: bool) -> int:
        """Bytes saved for backward."""
        with self._narrow(all_logits):
            return saved_tensor_bytes(self.model, lambda: self.loss(all_logits=all_logits))


def floor_side(base: nn.Module, batch: Batch, precision: Precision) -> Side:
    """Forward of the frozen backbone and the gradient of its inputs: what any adapter pays at least."""
    inputs = dict(batch.inputs)
    embed: Any = base.get_input_embeddings()  # type: ignore[operator]
    for ids, embeds in (("input_ids", "inputs_embeds"), ("decoder_input_ids", "decoder_inputs_embeds")):
        if ids in inputs:
            inputs[embeds] = embed(inputs.pop(ids)).detach().requires_grad_()
    return Side(fresh(base), replace(batch, inputs=inputs), Routing(), precision)


def peft_lora(base: nn.Module, *, rank: int, dropout: float) -> Any:
    """peft's model with LoRA on every linear projection."""
    from peft import LoraConfig, get_peft_model

    targets = [*setup_for(base).target_modules]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=targets)
    return get_peft_model(fresh(base), config)


def peft_side(base: nn.Module, batch: Batch, precision: Precision, *, rank: int, dropout: float) -> Side:
    """peft's LoRA on every linear projection."""
    model = peft_lora(base, rank=rank, dropout=dropout).base_model.model
    trained = [p for p in model.parameters() if p.requires_grad]
    return Side(model, batch, Routing(), precision, groups=[{"params": trained}])


@dataclass(frozen=True)
class Attached:
    """One of our methods on a backbone."""

    method: Method
    setup: Setup
    side: Side


def our_side(base: nn.Module, batch: Batch, precision: Precision, method: Method) -> Attached:
    """A method of ours, its parameters drawn away from where they start, so that every gradient says something.

    Raises:
        RequestError: the method does not fit the backbone, or trains nothing.
    """
    model = fresh(base)
    setup = setup_for(model, tasks=TASKS, total_steps=100_000)
    before = {id(p) for p in model.parameters()}
    method.attach(model, setup)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise RequestError(f"{method.name} trains nothing, so it has no training step to time.")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trained:
            if id(p) not in before and p.shape != ():
                p.add_(0.02 * torch.randn(p.shape, generator=draw).to(p.device))
    objective = objective_of(method, TASKS)
    side = Side(
        model,
        batch,
        setup.routing,
        precision,
        objective=lambda losses: objective(losses, batch.tasks, model),
        groups=method.param_groups(model, RATE),
        after=lambda step: method.after_step(model, step),
    )
    return Attached(method, setup, side)


def _all_logits(model: nn.Module, batch: Batch, routing: Routing) -> Tensor:
    """Row losses from the logits of all tokens, ``[rows]``."""
    logits = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)
    labels = torch.full((logits.shape[0],), -100, device=logits.device)
    labels[batch.label_index] = batch.label_ids
    losses = cross_entropy(logits.float(), labels, reduction="none")[batch.label_index]
    sums = torch.zeros(batch.rows, dtype=losses.dtype, device=losses.device)
    return sums.index_add(0, batch.label_rows, losses * batch.label_weights)
