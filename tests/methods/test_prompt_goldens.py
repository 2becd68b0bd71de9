"""ATTEMPT, MPT and SPoT against recorded values and gradients (see `source` in each JSON)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlbench.api.routing import Routing
from mtlbench.nn.losses import hidden_state_mse, kl_divergence
from mtlbench.nn.soft_prompts.prompt import PromptInput
from mtlbench.nn.soft_prompts.sources import FactoredPrompts, MixedPrompts, prompt_similarity, transfer_weights

GOLDENS = Path(__file__).parents[1] / "goldens"
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
OURS = {
    "sources": "source_prompts",
    "targets": "target_prompts",
    "down": "W_down",
    "up": "W_up",
    "norm_weight": "ln_weight",
    "norm_bias": "ln_bias",
}


def golden(name, dtype):
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in arrays.items()}


def error(got, want):
    return float((got.detach() - want).abs().max() / want.abs().max())


class Official(MixedPrompts):
    """As the official code computes: sources with gradients, padding pooled, no target at all without it."""

    def forward(self, text):
        target = self.targets.index_select(0, self.routing.ids(text.rows))
        target = target if self.mix_target else torch.zeros_like(target)
        return self.mixture(self.sources, target, self.query(dataclasses.replace(text, question_mask=None)))


def attempt(variant, dtype):
    arrays = golden("attempt", dtype)
    own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{variant}/")}
    targets = own["target_prompts"].reshape(-1, *own["source_prompts"].shape[1:])
    routing = Routing()
    source = Official(
        own["source_prompts"],
        targets,
        routing,
        tasks=len(targets),
        hidden=100,
        temperature=5.0,
        mix_target=variant != "no_target",
        draw=torch.Generator(),
    ).to(dtype)
    with torch.no_grad():
        for mine, theirs in OURS.items():
            source.get_parameter(mine).copy_(own[theirs].reshape(source.get_parameter(mine).shape))
    ids = own["task_ids"]
    ids = ids if len(ids) == len(own["input_ids"]) else torch.zeros(len(own["input_ids"]), dtype=torch.int64)
    return source, routing, ids, own


@PRECISIONS
@pytest.mark.parametrize("variant", ["mt_shared", "single", "no_target", "mt_eval_no_ids"])
def test_attempt_prompts_and_every_gradient_equal_the_official_ones(variant, dtype, tolerance):
    source, routing, ids, own = attempt(variant, dtype)
    with routing.of(ids):
        prompts = source(PromptInput(len(ids), own["token_embeddings"], None))
        (prompts * own["probe_R"]).sum().backward()
    assert error(prompts, own["soft_prompt"]) < tolerance
    for mine, theirs in OURS.items():
        grad, wanted = source.get_parameter(mine).grad, own[f"probe_grad/{theirs}"]
        if not wanted.any():
            assert grad is None or not grad.any()
            continue
        assert error(grad, wanted.reshape(grad.shape)) < tolerance, mine


@PRECISIONS
def test_mpt_prompts_and_every_gradient_equal_peft_ones(dtype, tolerance):
    arrays, routing = golden("mpt", dtype), Routing()
    source = FactoredPrompts(*(arrays[f"param/{name}"].clone() for name in "PUV"), routing)
    with routing.of(arrays["task_ids"]):
        prompts = source(PromptInput(4, torch.empty(0), None))
        (prompts * arrays["cotangent"]).sum().backward()
        static = source.static()(PromptInput(4, torch.empty(0), None))
    assert error(prompts, arrays["y"]) < tolerance
    assert error(static, arrays["y"]) < tolerance
    for name, grad in zip("PUV", (source.shared.grad, source.rows.grad, source.columns.grad), strict=True):
        assert error(grad, arrays[f"grad/{name}"]) < tolerance, name


@PRECISIONS
def test_mpt_targets_start_from_the_mean_factors_of_sources_as_in_peft(dtype, tolerance):
    arrays, routing = golden("mpt", dtype), Routing()
    sources = [arrays[f"param/{name}"] for name in "UV"]
    with_target = [torch.cat([factors, torch.zeros_like(factors[:1])]) for factors in sources]
    source = FactoredPrompts(arrays["param/P"], *with_target, routing)
    source.start_from(slice(3), slice(3, None))
    target = source.static().of(3)
    assert error(target, arrays["target_init/peft_product_of_means"]) < tolerance


@PRECISIONS
def test_mpt_distances_to_a_teacher(dtype, tolerance):
    arrays = golden("mpt", dtype)
    own, taught = ([arrays[f"distill/{what}_{who}"] for what in ("logits", "hidden")] for who in ("student", "teacher"))
    asked = arrays["distill/mask"].bool()
    found = [
        of(mine, theirs)[asked].mean()
        for of, mine, theirs in zip((kl_divergence, hidden_state_mse), own, taught, strict=True)
    ]
    assert error(found[0], arrays["distill/kl"]) < tolerance
    assert error(found[1], arrays["distill/mse"]) < tolerance


@PRECISIONS
def test_spot_similarities_and_weighted_start(dtype, tolerance):
    arrays = golden("spot", dtype)
    sources, targets = arrays["source_prompts"], arrays["target_prompts"]
    of_means = prompt_similarity(sources, targets, "mean")
    assert error(of_means, arrays["sim_avg_tokens"]) < tolerance
    assert torch.equal(transfer_weights(of_means, 1).argmax(0), arrays["best_source"])
    alike = prompt_similarity(sources, targets, "tokens")
    assert error(alike, arrays["sim_per_token"]) < tolerance
    start = torch.einsum("st,slw->tlw", transfer_weights(alike, 2), sources)[0]
    assert error(start, arrays["weighted_init_target0"]) < tolerance
