"""Poly, MHR and C-Poly against recorded values and gradients of the official codes (see `source` in each JSON)."""

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
from mtlbench.nn.low_rank.skills import SkillRouter
from mtlbench_methods import cpoly, poly

GOLDENS = Path(__file__).parents[1] / "goldens"
POLY = ["poly", "poly_mttl_train", "mhr", "mhr_mttl", "mhr_train"]
CPOLY = ["cpoly", "cpoly_eye", "cpoly_train", "cpoly_output_mix"]


def layer(name, dtype):
    """The layer, its routing, the golden's arrays and, per parameter, how the golden's tensor becomes ours."""
    config = json.loads((GOLDENS / f"{name}.json").read_text())["config"]
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)

    def tensor(array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    def logits(z):
        return z.reshape(len(z), splits, -1)

    splits = config.get("splits", 1)
    noise = tensor(arrays["noise_u"]) if "noise_u" in arrays else None
    given = {"scale": config.get("alpha", 1.0) / config["r"], "router": SkillRouter(), "noise": noise}
    of = partial(poly.factors, **given)
    ours = {
        "down": ("A", lambda a: a.reshape(splits, -1, *a.shape[-2:]).transpose(0, 1, 3, 2)),
        "up": ("B", lambda b: b.reshape(splits, -1, *b.shape[-2:])),
        "logits": ("z", logits),
    }
    if name in CPOLY:
        mix = "outputs" if name == "cpoly_output_mix" else "params"
        of = partial(cpoly.factors, **given, mix=mix, own=config["B_specific"])
        ours["specific"] = ("c", lambda c: c)

    base = nn.Linear(arrays["W"].shape[1], arrays["W"].shape[0]).to(dtype).requires_grad_(False)
    base.weight.data, base.bias.data = tensor(arrays["W"]), tensor(arrays["b"])
    parameters = {mine: tensor(turn(arrays[f"param/{theirs}"])) for mine, (theirs, turn) in ours.items()}
    routing = Routing()
    module = LowRankLinear(base, parameters, of, routing=routing).train(noise is not None)
    return module, routing, arrays, ours


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", POLY + CPOLY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_output_and_every_gradient_equal_the_official_ones(name, dtype, tolerance):
    module, routing, arrays, ours = layer(name, dtype)
    x = torch.from_numpy(arrays["x"]).to(dtype).requires_grad_()
    with routing.of(torch.from_numpy(arrays["task_ids"])):
        y = module(x)
        (y * torch.from_numpy(arrays["cotangent"]).to(dtype)).sum().backward()
    assert error(y, arrays["y"]) < tolerance
    assert error(x.grad, arrays["grad/x"]) < tolerance
    for mine, (theirs, turn) in ours.items():
        assert error(module.get_parameter(mine).grad, turn(arrays[f"grad/{theirs}"])) < tolerance, mine
    assert {f"grad/{theirs}" for theirs, _ in ours.values()} == {key for key in arrays if key[:5] == "grad/"} - {
        "grad/x"
    }


@pytest.mark.parametrize("name", ["mhr_train", "cpoly_train"])
def test_the_goldens_notice_other_noise(name):
    module, routing, arrays, _ = layer(name, torch.float64)
    with routing.of(torch.from_numpy(arrays["task_ids"])):
        y = module.eval()(torch.from_numpy(arrays["x"]))
    assert error(y, arrays["y"]) > 1e-3
