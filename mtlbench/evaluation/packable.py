"""Whether packed rows give the same scores as one sequence per row; otherwise they are not used."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from mtlbench.compat import attention_of
from mtlbench.evaluation.packed_rows import ScoreRequest, SharedRow, packed_row, share_rows
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.nn.packing import passes_masks, token_mixer, window_of
from mtlbench.nn.prefixes.places import attentions
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.tokens.encode import Tokens

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest allowed difference of a log-likelihood in the trial, relative to the largest one; 3e-2 for 16-bit dtypes."""


def packable(reader: CausalReader | Seq2seqReader, *, max_length: int) -> bool:
    """Whether packed rows and shared prefixes may be used: by inspecting the model, then by a trial with its adapter.

    The trial detects methods that depend on a whole row, and position handling that inspection does not reveal.
    """
    reason = _unfit(reader.model, max_length=max_length) or _failed(reader)
    if reason is not None:
        logger.debug("every sequence is scored in its own row: %s", reason)
    return reason is None


def _unfit(model: Any, *, max_length: int) -> str | None:
    """Why the model does not support packed rows, or ``None``."""
    decoder = model.get_decoder()
    config = decoder.config
    prompt = soft_prompt_of(model)
    if prompt is not None and prompt.source.reads_text and not model.config.is_encoder_decoder:
        return "its soft prompt depends on all tokens of a row"
    if attention_of(config) not in ("sdpa", "eager", "mtlbench"):
        return f"its attention {attention_of(config)!r} may not support a mask over pairs of tokens"
    if (mixer := token_mixer(decoder)) is not None:
        return f"its {mixer} reads tokens outside attention"
    causal = [int(m.layer_idx) for m in attentions(decoder) if m.is_causal]
    if sorted(causal) != list(range(_depth(config))):
        return "not every layer is causal self-attention"
    window = window_of(config)
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return f"its layers are {sorted(set(config.layer_types))}"
    if (window is not None and window < max_length) or getattr(config, "attention_chunk_size", None):
        return "it attends within a window"
    if model.config.is_encoder_decoder:
        biased = [m for m in attentions(decoder) if hasattr(m, "compute_bias")]
        return None if biased else "its decoder takes positions from the index in a row"
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        return "it accepts no position ids"
    return None


def _depth(config: Any) -> int:
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))


@torch.no_grad()
def needs_no_mask(reader: CausalReader, *, max_length: int) -> bool:
    """Whether rows of one sequence have the scores of rows with a mask where none is read: tried on a few of them."""
    if not passes_masks(reader.model, longest=max_length):
        return False
    rows = [packed_row([row]) for row in _trial(int(reader.model.config.vocab_size), encoder=False)]
    masked, before = reader.scores(rows, plain=True), reader.unmasked
    reader.unmasked = True
    try:
        unmasked = reader.scores(rows, plain=True)
    finally:
        reader.unmasked = before
    tolerance = TOLERANCE.get(reader.model.dtype, 3e-2) * float(masked[0].abs().max())
    return float((masked[0] - unmasked[0]).abs().max()) <= tolerance


@torch.no_grad()
def _failed(reader: CausalReader | Seq2seqReader) -> str | None:
    """Score a few random sequences packed (for a decoder-only model behind a shared prefix) and separately; ``None`` if
    the results agree."""
    rows = _trial(int(reader.model.config.vocab_size), encoder=isinstance(reader, Seq2seqReader))
    separate = reader.scores([packed_row([row]) for row in rows], plain=True)
    tolerance = TOLERANCE.get(reader.model.dtype, 3e-2) * float(separate[0].abs().max())
    if isinstance(reader, CausalReader):
        prefix = rows[0].tokens[:4]
        packed = reader.scores([packed_row(rows, prefix=prefix)], reader.prefixes([(rows[0].group[0], prefix)]))
    else:
        packed = reader.scores([packed_row(rows)])
    if not float((packed[0] - separate[0]).abs().max()) <= tolerance:
        return f"a trial gave {packed[0].tolist()} for {separate[0].tolist()}"
    return None


def _trial(vocabulary: int, *, encoder: bool) -> list[SharedRow]:
    """Three sequences with five common tokens, two of them with seven, followed by answers."""

    def tokens(count: int, seed: int) -> Tokens:
        return tuple((seed + 7 * i) % vocabulary for i in range(count))

    group = (0, tokens(6, 5) if encoder else ())
    shared = tokens(5, 3)
    tails = [(*tokens(2, 11), *tokens(3, 23)), (*tokens(2, 11), *tokens(2, 41)), tokens(4, 61)]
    return share_rows([ScoreRequest(i, group, (*shared, *tail), (*tail[1:], 3)) for i, tail in enumerate(tails)])
