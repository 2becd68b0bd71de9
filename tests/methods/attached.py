"""A tiny model with a method attached and moved away from its start, and batches for it."""

from __future__ import annotations

import torch

from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate

BUILDERS = [tiny_causal, tiny_seq2seq]


def attached(build, method, *, noise=0.3, tasks=3):
    """A model with the method attached and every trainable parameter moved by seeded noise, and its setup."""
    model = build(0)
    setup = setup_for(model, tasks=tasks)
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup


def batch_for(setup, rows=None):
    """Two rows of each of three tasks, or ``rows``, as one batch."""
    return collate(
        rows or toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )
