"""Whether rows of several sequences give a model's own numbers. What does not is read one sequence per row."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from mtlbench.evaluation.packed_rows import ScoreRequest, SharedRow, pack_of, share_rows
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.nn.prefixes.places import attentions
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.tokens.encode import Tokens

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of a log-likelihood in the trial, relative to the largest; 3e-2 in 16 bits."""


def packable(reader: CausalReader | Seq2seqReader, *, max_length: int) -> bool:
    """Whether packs, and trunks read ahead, may be used: by the model's parts, then by a trial with its adapter.

    The trial makes sure of methods that look at a whole row at once, and of positions that the model keeps to itself.
    """
    reason = _unfit(reader.model, max_length=max_length) or _failed(reader)
    if reason is not None:
        logger.debug("every sequence is scored in a row of its own: %s", reason)
    return reason is None


def _unfit(model: Any, *, max_length: int) -> str | None:
    """What of the model forbids packs."""
    decoder = model.get_decoder()
    config = decoder.config
    prompt = soft_prompt_of(model)
    if prompt is not None and prompt.source.reads_text and not model.config.is_encoder_decoder:
        return "what stands before a row depends on all of its tokens"
    if config._attn_implementation not in ("sdpa", "eager", "mtlbench"):
        return f"its attention {config._attn_implementation!r} may not take a mask of every pair of tokens"
    causal = [int(m.layer_idx) for m in attentions(decoder) if m.is_causal]
    if sorted(causal) != list(range(_depth(config))):
        return "not every layer is causal self-attention"
    window = getattr(config, "sliding_window", None)
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"its layers are {sorted(set(config.layer_types))}"
    if (window is not None and window < max_length) or getattr(config, "attention_chunk_size", None):
        return "it attends within a window"
    if model.config.is_encoder_decoder:
        biased = [m for m in attentions(decoder) if hasattr(m, "compute_bias")]
        return None if biased else "its decoder takes positions from the place in a row"
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        return "it takes no positions"
    return None


def _depth(config: Any) -> int:
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))


@torch.no_grad()
def _failed(reader: CausalReader | Seq2seqReader) -> str | None:
    """How a few made-up sequences come out otherwise in one row, of a decoder alone behind a trunk, than apart."""
    rows = _trial(int(reader.model.config.vocab_size), encoder=isinstance(reader, Seq2seqReader))
    wanted = reader.scores([pack_of([row]) for row in rows], plain=True)
    tolerance = TOLERANCE.get(reader.model.dtype, 3e-2) * float(wanted[0].abs().max())
    if isinstance(reader, CausalReader):
        trunk = rows[0].tokens[:4]
        found = reader.scores([pack_of(rows, trunk=trunk)], reader.trunks([(rows[0].group[0], trunk)]))
    else:
        found = reader.scores([pack_of(rows)])
    if not float((found[0] - wanted[0]).abs().max()) <= tolerance:
        return f"a trial gave {found[0].tolist()} for {wanted[0].tolist()}"
    return None


def _trial(vocabulary: int, *, encoder: bool) -> list[SharedRow]:
    """Three sequences that share five tokens, two of them seven, with the answers behind them."""

    def some(count: int, seed: int) -> Tokens:
        return tuple((seed + 7 * i) % vocabulary for i in range(count))

    group = (0, some(6, 5) if encoder else ())
    shared = some(5, 3)
    tails = [(*some(2, 11), *some(3, 23)), (*some(2, 11), *some(2, 41)), some(4, 61)]
    return share_rows([ScoreRequest(i, group, (*shared, *tail), (*tail[1:], 3)) for i, tail in enumerate(tails)])
