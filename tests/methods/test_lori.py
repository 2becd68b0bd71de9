"""LoRI: frozen random down-projections, and for each task the sparse up-projection that its first stage chose."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from peft import PeftModel

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.composition import Sum
from mtlbench.errors import RequestError
from mtlbench.nn.attachments import get_module
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.nn.low_rank.masks import ParameterMasks
from mtlbench.testing import setup_for, tiny_causal, toy_loop, toy_rows
from mtlbench_methods.lori import Lori
from mtlbench_methods.prompt_tuning import PromptTuning

METHOD = Lori(rank=4, sparsity=0.75)


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}


def trained(method, *, build=tiny_causal, steps=8):
    model = build(0)
    setup = setup_for(model, tasks=3, total_steps=steps)
    method.attach(model, setup)
    down = {name: layer.down.clone() for name, layer in layers(model).items()}
    seen = []
    protocol = Protocol(steps=steps, batch_size=12, learning_rate=1e-2, evals_per_run=0)
    loop = toy_loop(model, method, setup, protocol, on_step=lambda step, losses, tasks: seen.append(ups(model)))
    method.fit(model, loop)
    assert all(torch.equal(layer.down, down[name]) for name, layer in layers(model).items()), "A stays frozen"
    return model, setup, seen


def ups(model):
    return {name: layer.up.detach().clone() for name, layer in layers(model).items()}


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_outputs_and_gradients_are_those_of_the_formula(build, dtype, tolerance):
    model, setup = attached(build, METHOD)
    masks = get_module(model, ParameterMasks)
    masks.choose(ups(model), density=0.25)
    name, layer = [*layers(model.to(dtype)).items()][-1]
    mask = masks.get_buffer(name.replace(".", "/"))
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)
    tasks = torch.tensor([2, 0, 2])

    def slow(x):
        rows = [x[at] @ layer.down.T @ (layer.up[task] * mask[task]).T for at, task in enumerate(tasks.tolist())]
        return layer.base(x) + METHOD.alpha / METHOD.rank * torch.stack(rows)

    found = []
    with setup.routing.of(tasks):
        for compute in (layer, slow):
            given = x.clone().requires_grad_()
            y = compute(given)
            found.append([y, *torch.autograd.grad(y.square().sum(), [given, layer.up])])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    grad = found[0][2]
    assert not grad[1].any() and not grad[~mask].any() and grad[0].any()


def test_a_task_keeps_its_largest_elements_of_the_whole_model():
    masks = ParameterMasks({"a.b": (2, 1, 4), "c": (2, 2, 2)}, device=torch.device("cpu"))
    values = {
        "a.b": torch.tensor([[[1.0, -9, 2, 3]], [[0.0, 0, 0, 0]]]),
        "c": torch.ones(2, 2, 2) * torch.tensor([5, -4]),
    }
    assert torch.equal(masks.masked("c", values["c"]), values["c"])
    masks.choose(values, density=0.4)  # three of eight
    assert masks.masked("a.b", values["a.b"])[0].tolist() == [[0, -9, 0, 0]]
    assert masks.masked("c", values["c"])[0].tolist() == [[5, 0], [5, 0]]
    kept = torch.cat([masks.get_buffer("a/b").flatten(1), masks.get_buffer("c").flatten(1)], dim=1)
    assert kept.sum(1).tolist() == [3, 3] and masks.notes() == {"active_parameters": 3}


def test_the_second_stage_trains_what_the_first_one_chose_from_zero():
    _, _, seen = trained(METHOD)
    first, last = seen[3], seen[-1]
    total = sum(value[0].numel() for value in last.values())
    for task in range(3):
        chosen = torch.cat([value[task].abs().flatten() for value in first.values()]).topk(total // 4).indices
        flat = torch.cat([value[task].flatten() for value in last.values()])
        used = flat.nonzero().flatten().tolist()
        assert set(used) <= set(chosen.tolist()) and len(used) > total // 5
    begun = torch.cat([value.flatten() for value in seen[4].values()])
    assert float(begun.abs().max()) < 0.02, "one step from zero"


def test_the_first_stage_has_a_rate_of_its_own():
    model, _ = attached(tiny_causal, METHOD)
    assert METHOD.param_groups(model, 1e-2)[0]["lr"] == pytest.approx(1e-3)
    get_module(model, ParameterMasks).choose(ups(model), density=0.25)
    assert METHOD.param_groups(model, 1e-2)[0]["lr"] == pytest.approx(1e-2)
    assert Lori(sparsity=0.0).param_groups(model, 1e-2)[0]["lr"] == pytest.approx(1e-2)


def test_it_trains_beside_a_soft_prompt_that_no_mask_touches():
    method = Sum(members=(PromptTuning(prompt_length=3), METHOD))
    model, _, seen = trained(method)
    assert (
        get_module(model, ParameterMasks).notes()["active_parameters"]
        == sum(layer.up[0].numel() for layer in layers(model).values()) // 4
    )
    assert sum(bool(value.any()) for value in seen[-1].values()) > 0


def test_parameters_are_as_many_as_the_formula_says_and_a_task_s_part_is_in_the_record():
    model, setup, _ = trained(METHOD, steps=2)
    dense = sum(4 * setup.shapes[name][0] for name in layers(model))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * dense
    assert get_module(model, ParameterMasks).notes() == {"active_parameters": dense // 4}


@pytest.mark.parametrize("build", BUILDERS)
def test_a_task_is_a_lora(build, tmp_path):
    model, setup = attached(build, METHOD)
    get_module(model, ParameterMasks).choose(ups(model), density=0.25)
    batch = batch_for(setup, [row for row in toy_rows(tasks=3, rows=2) if row.task == 1])
    METHOD.export(model, tmp_path, task=1)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    want = label_logits(model, batch, setup.routing)
    torch.testing.assert_close(label_logits(loaded, batch, Routing()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"sparsity": 1.0}, {"mask_share": 0.0}, {"mask_rate_ratio": 0.0}, {"rank": 0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"{name}={value}"):
        Lori(**settings)


def test_what_it_cannot_do_is_refused_with_the_reason():
    setup = setup_for(tiny_causal(0), tasks=2, total_steps=1)
    assert "two stages" in str(METHOD.refuse(setup))
    assert Lori(sparsity=0.0).refuse(setup) is None
