"""Soft prompts: trained vectors before the embeddings of a row (prompt tuning, Lester et al. 2021, section 2).

The prompt is put in where the stack that reads it begins, and its slots are taken out where that stack ends. Outside of
it ids, masks, labels and logits keep the length of the row, so training, generation and scoring need to know nothing.
An encoder-decoder's prompt stands in its encoder's input, and the decoder sees what the encoder made of it.

In a cache the slots stand before the tokens: what is read behind one finds the prompt there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.errors import RequestError
from mtlbench.nn.attachments import attach_module, find_module
from mtlbench.nn.packing import Packing, packing_in_flight, without_mask
from mtlbench.nn.soft_prompts.rows import among, behind, joined, padding_before, token_places, tokens_of

NAME = "mtlbench_soft_prompt"
"""Where an attached prompt is in its model."""


@dataclass(frozen=True, eq=False)
class PromptInput:
    """The rows that a prompt is made for."""

    rows: int
    embeddings: Tensor
    """Of their tokens ``[rows, length, width]``."""
    question_mask: Tensor | None
    """Which tokens are the question, not padding and not its answer ``[rows, length]``; ``None`` for all. Always
    ``None`` for a source that does not read the text."""


class PromptSource(nn.Module):
    """What makes soft prompts."""

    length: int
    """Slots of a prompt."""
    reads_text: bool = False
    """Whether a row's prompt depends on its tokens. What rows share is then not read once for all when scoring."""

    def forward(self, text: PromptInput) -> Tensor:
        """Prompts ``[1 or rows, length, width]``, in any floating type; of one row for all rows."""
        raise NotImplementedError


class SoftPrompt(nn.Module):
    """The place of a soft prompt in one model; a submodule of it, ``model.mtlbench_soft_prompt``.

    Attributes:
        source: Makes the prompts, inside autograd, whenever rows are read from their beginning.
        on: Setting it to false leaves the stock model.
    """

    def __init__(self, source: PromptSource, routing: Routing) -> None:
        super().__init__()
        self.source, self.routing, self.on = source, routing, True
        self._flight = _Flight()

    def feed(self, source: PromptSource) -> None:
        """Take the prompts from another source of as many slots."""
        self.source = source.train(self.training)

    def moved(self, index: Tensor, *, rows: int) -> Tensor:
        """Flat positions of the ``[rows * length]`` tokens of the batch in flight, as positions inside the stack."""
        slots, before, length = self._flight.slots, self._flight.before, self._flight.length
        if not slots:
            return index
        places = token_places(length, slots=slots, before=before, device=index.device).expand(rows, -1)
        start = torch.arange(rows, device=index.device)[:, None] * (slots + length)
        return (places + start).reshape(-1)[index]

    def enter_causal(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward-pre-hook of a decoder-only stack."""
        return self._enter(stack, args, kwargs, self._into_causal)

    def enter_encoder(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward-pre-hook of an encoder."""
        return self._enter(stack, args, kwargs, self._into_encoder)

    def _enter(
        self,
        stack: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        put_into: Callable[[nn.Module, dict[str, Any]], None],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._flight = _Flight()
        if not self.on:
            return None
        given, packing = _by_name(stack, args, kwargs), packing_in_flight()
        if packing is None:
            put_into(stack, given)
        else:
            self._into_packed(packing, stack, given)
        return (), given

    def _into_causal(self, stack: nn.Module, given: dict[str, Any]) -> None:
        slots, positions = self.source.length, given.get("position_ids")
        mask = None if without_mask() else given.get("attention_mask")
        flat = mask is not None and mask.dim() == 2
        before = padding_before(mask) if mask is not None and flat else None
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            given["position_ids"] = None if positions is None else positions + slots
            if mask is not None:
                given["attention_mask"] = self._mask(mask, before) if flat else behind(mask, slots)
            return
        tokens = self._join(stack, given, before, mask)
        if mask is not None:
            given["attention_mask"] = self._mask(mask, before) if flat else among(mask, slots)
        if positions is not None:
            positions = positions.expand(tokens.shape[0], -1)
            first = torch.arange(slots, device=positions.device).expand(tokens.shape[0], -1)
            given["position_ids"] = joined(first, positions + slots, before)

    def _into_encoder(self, stack: nn.Module, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        by_row = None if mask is None else _by_row(mask)
        before = None if by_row is None else padding_before(by_row)
        self._join(stack, given, before, by_row)
        if mask is not None and by_row is not None:
            given["attention_mask"] = _as_given(self._mask(by_row, before), mask)

    def enter_decoder(
        self, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward-pre-hook of a decoder behind an encoder: it sees the encoder's output at the slots too."""
        mask = kwargs.get("encoder_attention_mask")
        if not self.on or mask is None or packing_in_flight() is not None:
            return None
        by_row = _by_row(mask)
        return args, {**kwargs, "encoder_attention_mask": _as_given(self._mask(by_row, padding_before(by_row)), mask)}

    def leave_causal(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of a decoder-only stack: its last hidden states, of tokens alone."""
        slots, before = self._flight.slots, self._flight.before
        if not slots:
            return None
        if isinstance(output, tuple):
            return (tokens_of(output[0], slots=slots, before=before), *output[1:])
        output.last_hidden_state = tokens_of(output.last_hidden_state, slots=slots, before=before)
        return output

    def _into_packed(self, packing: Packing, stack: Any, given: dict[str, Any]) -> None:
        """Put the prompts into the places that a packed batch leaves before each row."""
        tokens: Tensor = stack.get_input_embeddings()(given["input_ids"])
        flat, rows = tokens.reshape(-1, tokens.shape[-1]), len(packing.starts)
        slots = torch.arange(self.source.length, device=flat.device)
        text, question = flat.new_zeros(rows, 1, flat.shape[-1]), None
        if self.source.reads_text:
            sizes = packing.lengths - self.source.length
            at = torch.arange(packing.streams[0].widest - self.source.length, device=flat.device)
            places = (packing.starts + self.source.length)[:, None] + torch.minimum(at, sizes[:, None] - 1)
            text, question = flat[places], at < sizes[:, None]
        with self.routing.by_row():
            if question is not None and (contexts := self.routing.contexts(rows)) is not None:
                question = at < contexts[:, None]
            prompts = self.source(PromptInput(rows, text, question)).expand(rows, -1, -1)
        places = (packing.starts[:, None] + slots).reshape(-1)
        flat = flat.index_copy(0, places, prompts.to(flat.dtype).reshape(-1, flat.shape[-1]))
        given["input_ids"], given["inputs_embeds"] = None, flat.view_as(tokens)

    def _join(self, stack: Any, given: dict[str, Any], before: Tensor | None, mask: Tensor | None) -> Tensor:
        """Put the prompts before the embeddings of ``given``, in place; the embeddings without them."""
        tokens = given.get("inputs_embeds")
        if tokens is None:
            tokens = stack.get_input_embeddings()(given["input_ids"])
        assert isinstance(tokens, Tensor)
        rows, length = tokens.shape[:2]
        question = self._question_mask(mask, rows, tokens) if self.source.reads_text else None
        prompts = self.source(PromptInput(rows, tokens, question)).expand(rows, -1, -1)
        given["input_ids"] = None
        # last, so that the gradients of the rows are summed in the prompt's own type
        given["inputs_embeds"] = joined(prompts.to(tokens.dtype), tokens, before)
        self._flight = _Flight(self.source.length, length, before)
        return tokens

    def _question_mask(self, mask: Tensor | None, rows: int, tokens: Tensor) -> Tensor | None:
        contexts = self.routing.contexts(rows)
        if mask is not None and mask.dim() != 2:
            raise RuntimeError("a soft prompt that reads the text cannot tell padding by a mask of pairs of tokens")
        if contexts is None:
            return None if mask is None else mask != 0
        if mask is None:
            return torch.arange(tokens.shape[1], device=tokens.device) < contexts[:, None]
        return (mask != 0) & (mask.cumsum(1) <= contexts[:, None])

    def _mask(self, mask: Tensor, before: Tensor | None) -> Tensor:
        return joined(mask.new_ones(mask.shape[0], self.source.length), mask, before)


@dataclass(frozen=True, eq=False)
class _Flight:
    """What the stack last read; kept for layers that are computed again in the backward."""

    slots: int = 0
    """0 where no prompt was put in."""
    length: int = 0
    before: Tensor | None = None


def attach_soft_prompt(model: nn.Module, source: PromptSource, routing: Routing, *, longest: int) -> SoftPrompt:
    """Put the prompts of ``source`` before every row that ``model`` reads: a causal model, or an encoder-decoder.

    Rows may be padded on either side; masks of pairs of tokens (``[rows, 1, queries, keys]``) on the right alone.

    Args:
        model: A transformers model.
        longest: Tokens of the longest row.

    Raises:
        RequestError: the model has one already, or no positions for so many slots.
    """
    host: Any = model
    if soft_prompt_of(model) is not None:
        raise RequestError(f"{type(model).__name__} already has a soft prompt: attach one per model.")
    encoder = bool(host.config.is_encoder_decoder)
    stack = host.get_encoder() if encoder else host.get_decoder()
    room = getattr(host.config, "max_position_embeddings", None)
    if room is not None and source.length + longest > room:
        raise RequestError(
            f"A prompt of {source.length} slots and rows of {longest} tokens do not fit the {room} positions of "
            f"{type(model).__name__}. Take a shorter prompt or a smaller max_length."
        )
    prompt = SoftPrompt(source, routing).to(host.get_input_embeddings().weight.device)
    attach_module(model, NAME, prompt)
    if encoder:
        stack.register_forward_pre_hook(prompt.enter_encoder, with_kwargs=True)
        host.get_decoder().register_forward_pre_hook(prompt.enter_decoder, with_kwargs=True)
    else:
        stack.register_forward_pre_hook(prompt.enter_causal, with_kwargs=True)
        stack.register_forward_hook(prompt.leave_causal)
    return prompt


def soft_prompt_of(model: nn.Module) -> SoftPrompt | None:
    """The prompt attached to ``model``."""
    return find_module(model, SoftPrompt)


def _by_row(mask: Tensor) -> Tensor:
    """What a mask says of the tokens of each row ``[rows, length]``; it is that, or ``[rows, 1, 1, length]``."""
    return mask if mask.dim() == 2 else mask[:, 0, 0]


def _as_given(by_row: Tensor, mask: Tensor) -> Tensor:
    return by_row if mask.dim() == 2 else by_row[:, None, None]


def _by_name(stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by their names."""
    return {**dict(zip(inspect.signature(stack.forward).parameters, args, strict=False)), **kwargs}


def export_prompt(model: nn.Module, prompt: Tensor, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` that ``peft.PeftModel.from_pretrained`` reads.

    peft puts the prompt of an encoder-decoder before its encoder's input alone, as we do, with
    ``num_transformer_submodules=1``. Rows padded on the left are another function there, as peft drops their positions.

    Args:
        prompt: ``[length, width]``.
    """
    from peft import PromptTuningConfig
    from safetensors.torch import save_file

    own: Any = model.config
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM" if own.is_encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=own.name_or_path or None,
        num_virtual_tokens=prompt.shape[0],
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {"prompt_embeddings": prompt.detach().float().cpu().contiguous()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
