"""The reference forms against recorded values and gradients of the official implementations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtlbench.api.routing import Routing
from reference.adalora import AdaLora, Allocator, penalty
from reference.lora import Dora, Lora
from reference.moelora import MoeLora, MoLora, TaskGate
from reference.mtl_lora import MtlLora, MtlLoraGathered
from reference.multilora import MultiLora
from reference.poly import CPoly, CPolyOutputs, Poly

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays}
    return json.loads((GOLDENS / f"{name}.json").read_text())["config"], tensors


def one_split(parameters):
    """A golden without the axis of splits."""
    return {name: value[None] if name in "AB" else value for name, value in parameters.items()}


def gated(parameters):
    return {"gate": TaskGate(parameters.pop("emb"), parameters.pop("gate"))}


# per golden: the class and, from its configuration and parameters, the arguments besides them
FORMS = {
    "lora": (Lora, lambda c, p: {"scale": c["scaling"]}),
    "dora": (Dora, lambda c, p: {"scale": c["scaling"]}),
    "adalora": (AdaLora, lambda c, p: {"scale": c["alpha"] / (c["init_r"] + 1e-5)}),
    "multilora": (MultiLora, lambda c, p: {"scale": c["scaling"]}),
    "mtl_lora": (MtlLora, lambda c, p: {"scale": c["scaling"], "temperature": c["tau"]}),
    "mtl_lora_diag": (MtlLora, lambda c, p: {"scale": c["scaling"], "temperature": c["tau"]}),
    "moelora": (MoeLora, lambda c, p: {"scale": c["scaling"], **gated(p)}),
    "moelora_liu_per_layer": (MoeLora, lambda c, p: {"scale": c["scaling"], **gated(p)}),
    "molora_token": (MoLora, lambda c, p: {"scale": c["alpha"] / c["r"]}),
    "poly": (Poly, lambda c, p: {"scale": 1 / c["r"]}),
    "poly_mttl_train": (Poly, lambda c, p: {"scale": c["scaling"]}),
    "mhr": (Poly, lambda c, p: {"scale": 1 / c["r"]}),
    "mhr_train": (Poly, lambda c, p: {"scale": 1 / c["r"]}),
    "mhr_mttl": (Poly, lambda c, p: {"scale": c["scaling"]}),
    "cpoly": (CPoly, lambda c, p: {"scale": 1 / c["r"]}),
    "cpoly_eye": (CPoly, lambda c, p: {"scale": 1 / c["r"]}),
    "cpoly_train": (CPoly, lambda c, p: {"scale": 1 / c["r"]}),
    "cpoly_output_mix": (CPolyOutputs, lambda c, p: {"scale": 1 / c["r"]}),
}


def layer(name, form=None):
    """The layer in the mode of the golden, its routing and the golden's tensors."""
    config, tensors = golden(name)
    found, arguments = FORMS[name]
    given = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    if name == "cpoly_output_mix":
        given = one_split(given)
    more = arguments(config, given)
    if "noise_u" in tensors:
        more["noise"] = tensors["noise_u"]
    routing = Routing()
    base = nn.Linear(12, 10, dtype=torch.float64).requires_grad_(False)
    base.weight.data, base.bias.data = tensors["W"], tensors["b"]
    made = (form or found)(base, given, routing=routing, **more)
    return made.train(config.get("mode") == "train"), routing, tensors


def task_ids(tensors):
    ids = tensors.get("task_ids_official", tensors.get("task_ids"))
    return torch.zeros(tensors["x"].shape[0], dtype=torch.int64) if ids is None else ids


def error(got, want):
    return ((got.detach() - want).abs().max() / want.abs().max()).item()


def trainable(module):
    return {name.rpartition(".")[2]: p for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, None) for name in FORMS), ("mtl_lora", MtlLoraGathered), ("mtl_lora_diag", MtlLoraGathered)],
)
def test_output_and_every_gradient_equal_the_official_ones(name, form):
    module, routing, tensors = layer(name, form)
    x = tensors["x"].requires_grad_()
    with routing.of(task_ids(tensors)):
        y = module(x)
    (y * tensors["cotangent"]).sum().backward()
    assert error(y, tensors["y"]) < 1e-10
    assert error(x.grad, tensors["grad/x"]) < 1e-10
    wanted = {key.removeprefix("grad/") for key in tensors if key.startswith("grad/")} - {"x"}
    parameters = trainable(module)
    assert parameters.keys() == wanted
    for each in wanted:
        assert error(parameters[each].grad.reshape(tensors[f"grad/{each}"].shape), tensors[f"grad/{each}"]) < 1e-10, (
            each
        )


@pytest.mark.parametrize("name", ["mtl_lora", "moelora", "poly", "cpoly"])
def test_the_goldens_notice_another_order_of_tasks(name):
    module, routing, tensors = layer(name)
    with routing.of(task_ids(tensors).roll(1)):
        assert error(module(tensors["x"]), tensors["y"]) > 1e-3


def test_dropout_takes_another_path_in_dora_but_only_in_training():
    module, _, tensors = layer("dora")
    module.dropout.p = 0.5
    assert error(module.eval()(tensors["x"]), tensors["y"]) < 1e-10
    torch.manual_seed(0)
    mean = torch.stack([module.train()(tensors["x"]).detach() for _ in range(4000)]).mean(0)
    assert error(mean, tensors["y"]) < 0.05


def test_one_gate_in_two_layers_sums_their_gradients():
    module, routing, tensors = layer("moelora")
    again, _, _ = layer("moelora")
    again.gate, again.routing = module.gate, routing
    with routing.of(task_ids(tensors)):
        y = module(tensors["x"]) + again(tensors["x"])
    (y * tensors["cotangent"]).sum().backward()
    assert error(module.gate.emb.grad, 2 * tensors["grad/emb"]) < 1e-10


def test_adalora_penalty_and_allocation_follow_peft():
    module, _, tensors = layer("adalora")
    assert error(torch.stack(module.distances()), tensors["orth_norms"]) < 1e-10
    assert error(penalty([module]), tensors["orth_norms"].mean()) < 1e-10
    (module(tensors["x"]) * tensors["cotangent"]).sum().backward()
    allocator = Allocator([module], target_rank=3, warmup=2, final=2, every=1, total=10)
    counts = []
    for step in tensors["alloc_trace"][:, 0].int().tolist():
        allocator.step(step)
        counts.append(int(module.E.count_nonzero()))
    assert counts == tensors["alloc_trace"][:, 1].int().tolist()


def test_cpoly_without_a_table_uses_only_the_task_s_own_skill():
    module, routing, tensors = layer("cpoly_eye")
    with routing.of(task_ids(tensors)):
        want = module(tensors["x"])
        with torch.no_grad():
            module.c.copy_(torch.eye(3))
        kept = module(tensors["x"])
        del module.c
        got = module(tensors["x"])
    assert error(want, tensors["y"]) < 1e-10
    assert error(got, kept) < 1e-10
