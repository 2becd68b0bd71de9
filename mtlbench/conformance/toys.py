"""Tiny random backbones, learnable rows and a setup for them, for checks and tests. No network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Setup, SetupTask
from mtlbench.api.routing import Routing
from mtlbench.nn.linears import projection_names, shapes_of
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import Splits, carve

VOCABULARY = 97
PAD = 0
"""The token that pads, and that starts a decoder."""


def tiny_causal(seed: int = 0, **changes: Any) -> nn.Module:
    """A frozen Llama with random weights: hidden 32, 2 layers, 97 tokens, 0 pads; ``changes`` update its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return _random(LlamaForCausalLM, LlamaConfig(**{**settings, **changes}), seed)


def tiny_seq2seq(seed: int = 0, **changes: Any) -> nn.Module:
    """A frozen T5 with random weights: hidden 32, 2 + 2 layers, 97 tokens; token 0 pads and starts the decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    return _random(T5ForConditionalGeneration, T5Config(**{**settings, **changes}), seed)


def toy_rows(*, tasks: int, rows: int, seed: int = 0) -> list[TokenRow]:
    """``rows`` learnable rows per task: task t answers with the prompt's third token shifted by t, then 2."""
    draw = torch.Generator().manual_seed(seed)

    def row(task: int) -> TokenRow:
        length = int(torch.randint(4, 12, (), generator=draw))
        prompt = torch.randint(10, 20, (length,), generator=draw).tolist()
        return TokenRow(task, (1, *prompt), (30 + (prompt[2] - 10 + task) % 10, 2))

    return [row(task) for task in range(tasks) for _ in range(rows)]


def setup_for(model: nn.Module, *, tasks: int = 3, seed: int = 0, total_steps: int = 10) -> Setup:
    """A setup for ``model`` with ``tasks`` artificial tasks and a new routing."""
    targets = projection_names(model)
    return Setup(
        tasks=tuple(SetupTask(index, f"toy/{index}", 100) for index in range(tasks)),
        routing=Routing(),
        architecture="seq2seq" if model.config.is_encoder_decoder else "causal",  # type: ignore[union-attr]
        target_modules=targets,
        shapes=shapes_of(model, targets),
        total_steps=total_steps,
        max_length=64,
        seed=seed,
    )


def toy_loop(
    model: nn.Module,
    method: Method,
    setup: Setup,
    protocol: Protocol,
    *,
    splits: Splits | None = None,
    autocast: torch.dtype | None = None,
    **arguments: Any,
) -> Loop:
    """The real training loop on the CPU for :meth:`Method.fit`, by default on learnable rows.

    ``arguments`` are those of :class:`mtlbench.training.loop.Loop`, such as ``on_step``.
    """
    given = splits or carve(toy_rows(tasks=len(setup.tasks), rows=40), held_out=0.2, seed=0)
    job = TrainingJob(
        model=model,
        method=method,
        splits=given,
        protocol=protocol,
        tasks=len(setup.tasks),
        routing=setup.routing,
        collator=Collator(setup.architecture, PAD, PAD, torch.device("cpu")),
        seed=setup.seed,
        autocast=autocast,
    )
    return Loop(job, **arguments)


def _random(make: Any, config: Any, seed: int) -> nn.Module:
    """A model with this ``config``; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = make(config)
    return model.eval().requires_grad_(False)
