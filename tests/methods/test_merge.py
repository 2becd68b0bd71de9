"""Merging: the updates are those of lora_st, one of them is left for all tasks, and held-out rows choose its scale."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, batch_for
from peft import PeftModel

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.conformance.kit import method_findings, methods_named
from mtlbench.errors import RequestError
from mtlbench.nn.attachments import get_state
from mtlbench.nn.low_rank.layer import LowRankLinear, MergedLinear
from mtlbench.testing import setup_for, tiny_causal, toy_loop, toy_rows
from mtlbench.training.splits import carve
from mtlbench_methods import merge_rules as rules
from mtlbench_methods.lora_st import LoraSt
from mtlbench_methods.merge import HOWS, SCALES, Merge, MergeReport

SMALL = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
PROTOCOL = Protocol(steps=12, batch_size=12, learning_rate=1e-2, evals_per_run=0, held_out=0.2)


def trained(method, *, build=tiny_causal):
    model = build(0)
    setup = setup_for(model, tasks=3, total_steps=12)
    method.attach(model, setup)
    loop = toy_loop(model, method, setup, PROTOCOL)
    method.fit(model, loop)
    return model, setup, loop


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRankLinear)}


def deltas(model, task=None):
    folded = {name: layer.folded(task) for name, layer in layers(model).items()}
    return {name: f.scale * f.up @ f.down for name, f in folded.items()}


def test_the_updates_that_are_merged_are_those_of_lora_st():
    apart, _, _ = trained(LoraSt(**SMALL))
    of_tasks = [deltas(apart, task) for task in range(3)]
    merged = deltas(trained(Merge(how="task_arithmetic", scale=0.5, **SMALL))[0])
    mean = deltas(trained(Merge(how="average", **SMALL))[0])
    for name, found in merged.items():
        want = sum(of[name] for of in of_tasks)
        torch.testing.assert_close(found, 0.5 * want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean[name], want / 3, rtol=1e-4, atol=1e-5)


def test_a_rule_is_applied_to_every_linear_at_the_scale_and_the_density_given():
    apart, _, _ = trained(LoraSt(**SMALL))
    model, _, _ = trained(Merge(how="ties", scale=1.5, density=0.3, **SMALL))
    of_tasks = [deltas(apart, task) for task in range(3)]
    found = deltas(model)
    for name, delta in found.items():
        matrix = rules.combine(rules.RULES["ties"], [of[name] for of in of_tasks], density=0.3, draw=torch.Generator())
        best = rules.truncated(1.5 * matrix, rank=6)
        torch.testing.assert_close(delta, best.up @ best.down, rtol=1e-3, atol=1e-4)
    assert 0.5 < get_state(model, MergeReport).kept < 1


@pytest.mark.parametrize("how", ["task_arithmetic", "knots"])
def test_what_is_not_given_is_chosen_by_the_validation_split_and_listed(how):
    model, _, loop = trained(Merge(how=how, **SMALL))
    note = get_state(model, MergeReport).notes()["merge"]
    tried = note["tried"]
    assert [scale for scale, _, _ in tried[: len(SCALES)]] == [*SCALES]
    scale, density, score = min(tried, key=lambda one: one[2])
    assert note["scale"] == scale and note["kept"] == 1.0
    assert note["density"] == (density if how == "knots" else None)
    assert loop.validation_score() == pytest.approx(score, rel=1e-5), "what was chosen is what is left"
    assert len(tried) == len(SCALES) + (5 if how == "knots" else 0)


@pytest.mark.parametrize("build", BUILDERS)
def test_one_update_serves_all_tasks_merged_and_as_a_lora_of_peft(build, tmp_path):
    method = Merge(how="core_space", scale=1.0, density=0.5, **SMALL)
    model, setup, _ = trained(method, build=build)
    batch = batch_for(setup, toy_rows(tasks=3, rows=1))
    want = label_logits(model, batch, setup.routing)
    method.export(model, tmp_path)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    torch.testing.assert_close(label_logits(loaded, batch, Routing()), want, rtol=1e-4, atol=1e-4)
    method.finish(model)
    assert any(isinstance(module, MergedLinear) for module in model.modules()) and not layers(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_every_way_to_merge_keeps_the_promises_of_a_method(how):
    (method,) = methods_named(f"merge[how={how}]").values()
    assert not [finding for finding in method_findings(method) if finding.outcome == "failed"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"how": "mean"}, "how=mean"),
        ({"how": "average", "scale": 0.5}, "scale=0.5"),
        ({"how": "task_arithmetic", "density": 0.5}, "density=0.5"),
        ({"how": "ties", "density": 0.0}, "density=0.0"),
        ({"how": "ties", "within": "dare"}, "within=dare"),
        ({"how": "knots", "within": "average"}, "within=average"),
        ({"how": "knots", "within": "task_arithmetic", "density": 0.5}, "density=0.5"),
        ({"how": "svd", "scale": -1.0}, "scale=-1.0"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings, named):
    with pytest.raises(RequestError, match=named):
        Merge(**settings)


def test_only_what_is_chosen_needs_held_out_rows():
    assert Merge(how="ties", scale=1.0).searches and Merge(how="svd").searches
    assert not Merge(how="average").searches and not Merge(how="ties", scale=1.0, density=0.2).searches
    model = tiny_causal(0)
    method = Merge(how="ties", **SMALL)
    setup = setup_for(model, tasks=2, total_steps=4)
    method.attach(model, setup)
    splits = carve(toy_rows(tasks=2, rows=9), held_out=0.0, seed=0)
    with pytest.raises(RequestError, match="validation split is empty"):
        method.fit(model, toy_loop(model, method, setup, Protocol(steps=4, batch_size=4), splits=splits))
