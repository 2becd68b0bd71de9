"""Our layers against recorded values and gradients of the official implementations (see `source` in each JSON)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtlbench.engine.lowrank import LowRankLinear
from mtlbench.engine.routing import Routing
from mtlbench_methods import lora, mtl_lora

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return json.loads((GOLDENS / f"{name}.json").read_text())["config"], dict(arrays)


def layer(name, dtype):
    """The layer, its routing, the ids and, per parameter, how the golden's tensor becomes ours."""
    config, arrays = golden(name)
    if name == "lora":
        of = partial(lora.factors, scale=config["scaling"])
        ours = {"down": ("A", lambda a: a), "up": ("B", lambda b: b)}
    else:
        of = partial(mtl_lora.factors, scale=config["scaling"], temperature=config["tau"])
        ours = {
            "down": ("A", lambda a: a),
            "transform": ("Lam", lambda m: m),
            "up": ("B", lambda b: b.transpose(1, 0, 2)),
            "logits": ("w", lambda w: w),
        }

    def tensor(array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    base = nn.Linear(arrays["W"].shape[1], arrays["W"].shape[0]).to(dtype).requires_grad_(False)
    base.weight.data, base.bias.data = tensor(arrays["W"]), tensor(arrays["b"])
    parameters = {mine: tensor(turn(arrays[f"param/{theirs}"])) for mine, (theirs, turn) in ours.items()}
    routing = Routing()
    return LowRankLinear(base, parameters, of, routing=routing), routing, arrays, ours


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", ["lora", "mtl_lora", "mtl_lora_diag"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_output_and_every_gradient_equal_the_official_ones(name, dtype, tolerance):
    module, routing, arrays, ours = layer(name, dtype)
    x = torch.from_numpy(arrays["x"]).to(dtype).requires_grad_()
    ids = torch.from_numpy(arrays.get("task_ids", np.zeros(x.shape[0], dtype=np.int64)))
    with routing.of(ids):
        y = module(x)
        (y * torch.from_numpy(arrays["cotangent"]).to(dtype)).sum().backward()
    assert error(y, arrays["y"]) < tolerance
    assert error(x.grad, arrays["grad/x"]) < tolerance
    for mine, (theirs, turn) in ours.items():
        assert error(module.get_parameter(mine).grad, turn(arrays[f"grad/{theirs}"])) < tolerance, mine
    assert module.base.weight.grad is None


def test_the_goldens_notice_another_order_of_tasks():
    module, routing, arrays, _ = layer("mtl_lora", torch.float64)
    with routing.of(torch.from_numpy(arrays["task_ids"]).roll(1)):
        y = module(torch.from_numpy(arrays["x"]))
    assert error(y, arrays["y"]) > 1e-3
