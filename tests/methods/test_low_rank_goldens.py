"""Our layers against recorded values and gradients of the official implementations (see `source` in each JSON)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench_methods import lora, moelora, molora, mtl_lora, multilora

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = [
    "lora",
    "mtl_lora",
    "mtl_lora_diag",
    "multilora",
    "moelora",
    "moelora_liu_per_layer",
    "molora_token",
]


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return json.loads((GOLDENS / f"{name}.json").read_text())["config"], dict(arrays)


def same(a):
    return a


def experts(a):
    """Down-projections of all experts, one below the other."""
    return a.reshape(-1, a.shape[-1])


def side_by_side(a):
    """Up-projections of all experts, one beside the other."""
    return a.transpose(1, 0, 2).reshape(a.shape[1], -1)


def moelora_of(config):
    of = partial(moelora.factors, experts=config["experts"], scale=config["scaling"])
    return of, {"down": ("A", experts), "up": ("B", side_by_side), "gate": ("gate", same)}


def factors_of(name, config):
    """Our factor function and, per parameter of ours, the golden's tensor and how it becomes ours."""
    if name == "lora":
        return partial(lora.factors, scale=config["scaling"]), {"down": ("A", same), "up": ("B", same)}
    if name == "multilora":
        turned = {"down": ("A", same), "up": ("B", lambda b: b.transpose(1, 0, 2)), "scale": ("s", lambda s: s.T)}
        return partial(multilora.factors, scale=config["scaling"]), turned
    if name == "moelora":  # its last embedding belongs to no task
        of, turned = moelora_of(config)
        return of, {**turned, "tasks": ("emb", lambda e: e[:3])}
    if name == "moelora_liu_per_layer":  # its first embedding is padding
        of, turned = moelora_of(config)
        return of, {**turned, "tasks": ("emb", lambda e: e[1:])}
    if name == "molora_token":
        of = partial(molora.factors, rank=config["r"], top_k=0, scale=config["alpha"] / config["r"])
        return of, {"down": ("A", experts), "up": ("B", side_by_side), "router": ("G", same)}
    of = partial(mtl_lora.factors, scale=config["scaling"], temperature=config["tau"])
    turned = {"down": ("A", same), "transform": ("Lam", same), "logits": ("w", same)}
    return of, {**turned, "up": ("B", lambda b: b.transpose(1, 0, 2))}


def layer(name, dtype):
    """The layer, its routing, the golden's arrays and how they become ours."""
    config, arrays = golden(name)
    of, ours = factors_of(name, config)

    def tensor(array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    base = nn.Linear(arrays["W"].shape[1], arrays["W"].shape[0]).to(dtype).requires_grad_(False)
    base.weight.data, base.bias.data = tensor(arrays["W"]), tensor(arrays["b"])
    parameters = {mine: tensor(turn(arrays[f"param/{theirs}"])) for mine, (theirs, turn) in ours.items()}
    routing = Routing()
    module = LowRankLinear(base, parameters, of, routing=routing, reads_input=name == "molora_token")
    return module, routing, arrays, ours


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", NAMES)
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


def test_multilora_merges_as_the_official_code_does():
    module, _, arrays, _ = layer("multilora", torch.float64)
    merged = module.merged()(torch.from_numpy(arrays["x"]))
    assert error(merged, arrays["y_merged"]) < 1e-10
