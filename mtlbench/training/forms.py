"""How the rows of a step go through a model: end to end without padding, or padded where that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.method import Method
from mtlbench.backbones.backbone import backbone_size
from mtlbench.backbones.machine import is_out_of_memory
from mtlbench.backbones.transfer import to_device
from mtlbench.compat import attention_of
from mtlbench.nn.attachments import find_module
from mtlbench.nn.packing import PREFIXED, attention_configs, passes_masks, why_not_packed, window_of
from mtlbench.nn.prefixes.slots import PrefixSlots
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch, Collator
from mtlbench.training.cuts import end_to_end, like_length, pass_slots, pass_tokens
from mtlbench.training.gradients import Gradients
from mtlbench.training.micro_batches import fewer

log = logging.getLogger(__name__)
Collate = Callable[[Sequence[TokenRow]], Batch]

TRIED = 6
"""Rows of the trial."""
NOISE = 0.05
"""Standard deviation of what moves trainable parameters in the trial, so that zeros at the start hide nothing."""
MOVED_AT_MOST = 2**26
"""Trainable parameters that are moved for the trial; with more (full fine-tuning) they stay as they are."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest relative difference of row losses, by the dtype of the computation; :data:`COARSE` for others."""
COARSE = 3e-2
STATES = 1e-3
"""The same of the states that logits are made of, by their norms, where the computation is not coarse."""


@dataclass(frozen=True)
class RowForm:
    """What makes batches of rows, and where rows are cut into passes."""

    collate: Collate
    cut: Callable[[Sequence[int]], list[slice]]
    """From lengths of rows, shortest first, to the slices of passes."""
    padded_because: str | None
    """Why rows are padded; ``None`` where they lie end to end."""
    by_bounds: bool = False
    """Whether attention takes the bounds of rows instead of buckets (:mod:`mtlbench.nn.varlen`)."""

    def __str__(self) -> str:
        if self.padded_because is not None:
            return f"padded: {self.padded_because}"
        return "end to end, attention by row bounds" if self.by_bounds else "end to end"


def form_of(gradients: Gradients, collator: Collator, rows: Sequence[TokenRow], *, longest: int) -> RowForm:
    """The form that suits the model and the method attached to it; tried on some of the ``rows``.

    Both give the same losses and gradients beyond rounding, so the choice changes no result.

    Args:
        longest: Tokens of the longest row there may be.
    """
    model, method = gradients.model, gradients.method
    most = pass_tokens(backbone_size(model), collator.device.type, bytes_each=_dtype(gradients).itemsize)
    reason = _unsuited(model, method, longest=longest)
    if reason is None:
        form = RowForm(_packs(model, method, collator), _passes(model, most=most), None)
        tried: list[Batch] = []
        reason = _differs(gradients, collator, _kept(_packs(model, method, collator, awkward=True), tried), rows)
        if reason is None:
            by_bounds = any(batch.packing is not None and batch.packing.by_bounds for batch in tried)
            return replace(form, by_bounds=by_bounds and not _drops_attention(model))
    log.info("rows are padded: %s", reason)
    cut = partial(like_length, extra=pass_slots(model, collator.device), most=most)
    unread = method.reads_rows and passes_masks(model, longest=longest)
    return RowForm(_pads(model, method, collator, unread=unread), cut, reason)


def _drops_attention(model: Any) -> bool:
    """Whether attention has dropout in training, which the trial has not."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in ("attention_dropout", "attn_pdrop"))


def _kept(collate: Collate, made: list[Batch]) -> Collate:
    """``collate`` that keeps the batches it makes."""

    def run(rows: Sequence[TokenRow]) -> Batch:
        made.append(collate(rows))
        return made[-1]

    return run


def _dtype(gradients: Gradients) -> torch.dtype:
    return gradients.autocast or next(gradients.model.parameters()).dtype


def _packs(model: nn.Module, method: Method, collator: Collator, *, awkward: bool = False) -> Collate:
    """Rows end to end, with room for a soft prompt before each while the model has one."""

    # Trained as what it is built on, to the bit.
    by_task = method.task_routed or (method.built_on is not None and method.built_on.task_routed)

    def collate(rows: Sequence[TokenRow]) -> Batch:
        return collator.packed(rows, by_task=by_task, slots=_slots(model), awkward=awkward)

    return collate


def _pads(model: nn.Module, method: Method, collator: Collator, *, unread: bool) -> Collate:
    """Padded rows; where layers report their tokens, those of an encoder and a decoder can be told apart."""
    if not method.has_auxiliary_loss:
        return partial(collator.padded, unread=unread)
    return lambda rows: collator.padded(rows, apart=_slots(model), unread=unread)


def _passes(model: nn.Module, *, most: int) -> Callable[[Sequence[int]], list[slice]]:
    """Where rows laid end to end are cut; the soft prompt before each is computed too."""

    def cut(lengths: Sequence[int]) -> list[slice]:
        slots = _slots(model)
        return end_to_end([length + slots for length in lengths], most=most)

    return cut


def _slots(model: nn.Module) -> int:
    """Places of a soft prompt before each row, while the model has one."""
    prompt = soft_prompt_of(model)
    return prompt.source.length if prompt is not None and prompt.on else 0


def _unsuited(model: Any, method: Method, *, longest: int) -> str | None:
    prefixes = find_module(model, PrefixSlots)
    kinds = {attention_of(config) for config in attention_configs(model)}
    kinds = kinds - {PREFIXED} | (set() if prefixes is None else set(prefixes.stock))
    if kinds != {"sdpa"}:
        return f"attention {'+'.join(sorted(kinds - {'sdpa'}))!r} has no kernel for rows of unlike length"
    if (reason := why_not_packed(model)) is not None:
        return reason
    if method.reads_rows:
        return f"layers of {method.name!r} read whole rows"
    config = model.config.get_text_config()
    if (chunk := getattr(config, "attention_chunk_size", None)) is not None and chunk < longest:
        return f"attention goes by chunks of {chunk} tokens and rows may have {longest}"
    window = window_of(config)
    if window is not None and window < longest:
        return f"attention has a sliding window of {window} tokens and rows may have {longest}"
    return None


def _differs(gradients: Gradients, collator: Collator, collate: Collate, rows: Sequence[TokenRow]) -> str | None:
    """Whether rows laid end to end have other losses than padded ones, with trainable parameters moved a little.

    Fewer rows are tried where memory runs out.

    Raises:
        NoRoom: it runs out with a single row.
    """
    tried = _unlike(rows)
    while tried:
        try:
            (padded, states), (laid, other) = _both_ways(gradients, collator, collate, tried)
        except Exception as error:
            if not is_out_of_memory(error):
                return f"this backbone cannot: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            tried = tried[: fewer(len(tried), error)]
            continue
        dtype = _dtype(gradients)
        apart = float(((padded - laid).abs() / padded.abs().clamp(min=1e-3)).max())
        if apart > TOLERANCE.get(dtype, COARSE):
            return f"losses of rows laid end to end differ by {apart:.2g}: a layer mixes tokens outside attention"
        # a model that makes little of its tokens, as an untrained one, hides in its losses that rows see one another
        apart = float(((states - other).norm(dim=-1) / states.norm(dim=-1).clamp(min=1e-6)).max())
        if dtype in TOLERANCE and apart > STATES:
            return (
                f"hidden states of rows laid end to end differ by {apart:.2g}: a layer mixes tokens outside attention"
            )
        break
    return None


def _both_ways(
    gradients: Gradients, collator: Collator, collate: Collate, rows: Sequence[TokenRow]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Row losses and the states that logits are made of ``[labels, width]``, padded and laid end to end."""
    model, training = gradients.model, gradients.model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _moved(model):
            return _read(gradients, collator.padded(rows)), _read(gradients, collate(rows))
    finally:
        model.train(training)


def _read(gradients: Gradients, batch: Batch) -> tuple[Tensor, Tensor]:
    host: Any = gradients.model
    states: list[Tensor] = []
    handle = host.get_output_embeddings().register_forward_hook(lambda _, args, __: states.append(args[0].float()))
    try:
        return gradients.forward(batch), torch.cat(states)
    finally:
        handle.remove()


def _unlike(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """A few rows of several tasks and lengths, of the shorter half."""
    by_length = sorted(rows, key=lambda row: row.length)[: max(1, (len(rows) + 1) // 2)]
    step = max(1, len(by_length) // TRIED)
    spread = by_length[::step][: TRIED - 1]
    tasks = {row.task for row in spread}
    other = next((row for row in by_length if row.task not in tasks), None)
    return sorted([*spread, *([] if other is None else [other])], key=lambda row: row.length)


@contextmanager
def _moved(model: nn.Module) -> Iterator[None]:
    """Inside, trainable parameters have noise added; afterwards they are what they were, bit for bit."""
    params = [p for p in model.parameters() if p.requires_grad]
    if sum(p.numel() for p in params) > MOVED_AT_MOST:
        params = []
    draw = torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in params]
    noise = [torch.randn(p.shape, generator=draw) * NOISE for p in params]
    for p, moved in zip(params, to_device(noise, params[0].device) if params else [], strict=True):
        p.data.add_(moved.to(p.dtype))
    try:
        yield
    finally:
        for p, value in zip(params, before, strict=True):
            p.data.copy_(value)
