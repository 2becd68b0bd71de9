"""The model card of a demo backbone: what it is, how it was made, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping

_CARD = """---
license: apache-2.0
---
# {name}: a demo backbone of mtlbench

A {kind} model of {parameters:,} parameters, stored as float16, with a byte-level BPE tokenizer of {vocabulary:,}
entries. It is made from generated text only (`mtlbench.demo.corpus`), knows a few hundred English words, and is of use
only for demos and tests.

Made by `python -m mtlbench.demo.pretrain --only {name}`:

| | |
|---|---|
| objective | {objective} |
| steps | {steps:,.0f} of about {batch:,} input tokens |
| input tokens | {tokens:,.0f}, padding included |
| optimisers | Muon for matrices (learning rate {muon:g}), AdamW for the rest ({adamw:g}); warm-up, cosine decay |
| precision, seed | bfloat16 autocast, {seed} |
| loss, mean of the last 100 steps | {loss:.3f} |
| answer tokens right, the same | {answers:.1%} |
| time | {seconds:,.0f} seconds, {threads} CPU thread(s) |

Every step trains on new text, so these means are on text not seen before.

Licence: Apache-2.0.
"""


def card(values: Mapping[str, str | float]) -> str:
    """The card in Markdown, from the values of a recipe and the figures of its run."""
    return _CARD.format_map(dict(values))
