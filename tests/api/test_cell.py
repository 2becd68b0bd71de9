"""Cells keep their keys: what an earlier version wrote is found again by this one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mtlbench.api.cell import Cell, canonical

EARLIER = json.loads("""
{"method": "lora", "settings": {"rank": 16}, "tasks": ["glue/rte", "glue/cola"], "model": "demo", "seed": 3, "weights": "",
 "plugins": {}, "protocol": {"name": "", "data": "demo", "prompts": "", "max_length": 256, "train_rows": null,
 "eval_rows": null, "k_shot": "", "holdout": 0.0, "eval_from_train": 0.0, "held_out": 0.1, "sources": "",
 "adapt_epochs": null, "adapt_steps": null, "epochs": 3.0, "steps": null, "batch_size": 32, "micro_batch": null,
 "learning_rate": 0.001, "schedule": "cosine", "warmup": 0.06, "weight_decay": 0.0, "clip": 1.0,
 "mixing": "proportional", "evals_per_run": 4, "patience": 2, "dtype": "auto", "attention": "sdpa",
 "checkpointing": false, "tuning": "none"}}
""")
"""A cell as version 0.1.0 wrote it at first: no field of it may lose its meaning."""


def test_a_cell_of_an_earlier_version_keeps_its_key_and_its_protocols_hash() -> None:
    cell = Cell.from_json(EARLIER)
    assert (cell.key, cell.protocol.hash()) == ("ab825998dad90874ca552bf4", "569da84c0e8b")
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))).key == cell.key


def test_the_key_follows_from_everything_but_the_protocols_name() -> None:
    cell = Cell.from_json(EARLIER)
    others = [
        replace(cell, method="dora"),
        replace(cell, settings={"rank": 8}),
        replace(cell, tasks=cell.tasks[::-1]),
        replace(cell, model="other"),
        replace(cell, seed=4),
        replace(cell, weights="a"),
        replace(cell, plugins={"p": "1"}),
        replace(cell, protocol=replace(cell.protocol, steps=1)),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 1 + len(others)
    assert replace(cell, protocol=replace(cell.protocol, name="standard")).key == cell.key


def test_a_field_of_a_newer_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['novel'\] are unknown to this version"):
        Cell.from_json({**EARLIER, "protocol": {**EARLIER["protocol"], "novel": 1}})


def test_canonical_text_refuses_what_json_cannot_hold() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
