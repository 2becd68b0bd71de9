"""Rules of merging: peft's where it has them, the papers' formulas by hand for the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils as theirs

from mtlbench_methods.merge_rules import RULES, LowRank, average, combine, core_space, knots, svd, total, whole

OF_PEFT = {
    "task_arithmetic": lambda tensors, density: theirs.task_arithmetic(tensors, torch.ones(len(tensors))),
    "ties": lambda tensors, density: theirs.ties(tensors, torch.ones(len(tensors)), density),
    "dare": lambda tensors, density: theirs.dare_linear(tensors, torch.ones(len(tensors)), density),
    "dare_ties": lambda tensors, density: theirs.dare_ties(tensors, torch.ones(len(tensors)), density),
    "magnitude": lambda tensors, density: theirs.magnitude_prune(tensors, torch.ones(len(tensors)), density),
}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def updates(tasks=3, out=11, width=9, rank=2, seed=0):
    of = draw(seed)
    make = lambda *shape: torch.randn(*shape, generator=of, dtype=torch.float64)  # noqa: E731
    return [LowRank(make(out, rank), make(rank, width)) for _ in range(tasks)]


def product(update):
    return update.up @ update.down


@pytest.mark.parametrize("density", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("name", RULES)
def test_elements_are_merged_as_by_peft(name, density):
    tensors = [torch.randn(7, 5, generator=draw(seed)) for seed in range(4)]
    torch.manual_seed(3)
    want = OF_PEFT[name](tensors, density)
    torch.testing.assert_close(combine(RULES[name], tensors, density=density, draw=draw(3)), want, rtol=1e-6, atol=1e-6)


def test_ties_by_hand():
    """Of each the two largest of four; signs of the sums +, -, +, +; means of those that agree."""
    tensors = [torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([-2.0, -5.0, 0.1, 0.2]), torch.tensor([1.0, 0, 6, 3])]
    merged = combine(RULES["ties"], tensors, density=0.5, draw=draw())
    assert merged.tolist() == [4.0, -4.0, 6.0, 3.0]


def test_sum_and_mean_are_exact():
    given = updates()
    want = sum(map(product, given))
    torch.testing.assert_close(product(total(given)), want)
    torch.testing.assert_close(product(average(given)), want / 3)


def test_svd_is_that_of_pefts_weighted_adapter():
    """Two adapters of rank 2 on one linear, with a scaling of 2, merged to rank 2."""
    model = torch.nn.Sequential(torch.nn.Linear(9, 11))
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
    host = get_peft_model(model, config, adapter_name="a")
    host.add_adapter("b", replace(config))
    given = [LowRank(u.up.float(), u.down.float()) for u in updates(tasks=2)]
    layer = host.base_model.model[0]
    for name, update in zip("ab", given, strict=True):
        layer.lora_A[name].weight.data.copy_(update.down)
        layer.lora_B[name].weight.data.copy_(update.up)
    host.base_model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "merged", combination_type="svd", svd_rank=2)
    want = layer.get_delta_weight("merged")
    torch.testing.assert_close(2 * product(svd(given, rank=2)), want, rtol=1e-4, atol=1e-4)


def test_matrices_of_full_rank_are_kept_as_well_as_a_low_rank_can():
    given = updates()
    matrix = combine(RULES["ties"], list(map(product, given)), density=0.4, draw=draw())
    low, kept = whole(given, RULES["ties"], density=0.4, draw=draw(), rank=6)
    values = torch.linalg.svdvals(matrix).square()
    assert kept == pytest.approx(float(values[:6].sum() / values.sum())) and kept < 0.999
    assert float((product(low) - matrix).square().sum()) == pytest.approx(float(values[6:].sum()))
    full, everything = whole(given, RULES["ties"], density=0.4, draw=draw(), rank=9)
    torch.testing.assert_close(product(full), matrix)
    assert everything == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["ties", "magnitude"])
def test_knots_is_the_papers_formula(name):
    """One decomposition of the matrices side by side, ``S V_t`` merged, ``U`` before them."""
    given = updates()
    u, s, v = torch.linalg.svd(torch.cat(list(map(product, given)), 1), full_matrices=False)
    used = s > 1e-5
    assert int(used.sum()) == 6
    parts = [torch.diag(s[used]) @ part for part in v[used].split(9, 1)]
    want = u[:, used] @ combine(RULES[name], parts, density=0.4, draw=draw())
    torch.testing.assert_close(product(knots(given, RULES[name], density=0.4, draw=draw())), want)


@pytest.mark.parametrize("name", ["ties", "magnitude"])
def test_core_space_is_the_papers_formula(name):
    """``M_t = R_B (S_B V_B' U_A S_A) Q_A`` in the reference bases, as the official code has it before it is shortened."""
    given = updates()
    right = torch.linalg.svd(torch.cat([u.down for u in given], 0), full_matrices=False)[2]
    left = torch.linalg.svd(torch.cat([u.up for u in given], 1), full_matrices=False)[0]
    cores = []
    for update in given:
        u_a, s_a, v_a = torch.linalg.svd(update.down, full_matrices=False)
        u_b, s_b, v_b = torch.linalg.svd(update.up, full_matrices=False)
        middle = torch.diag(s_b) @ (v_b @ u_a) @ torch.diag(s_a)
        cores.append((left.T @ u_b) @ middle @ (v_a @ right.T))
    want = left @ combine(RULES[name], cores, density=0.4, draw=draw()) @ right
    torch.testing.assert_close(product(core_space(given, RULES[name], density=0.4, draw=draw())), want)


@pytest.mark.parametrize("space", [knots, core_space])
def test_a_sum_in_a_shared_basis_is_the_sum(space):
    given = updates()
    found = space(given, RULES["task_arithmetic"], density=1.0, draw=draw())
    torch.testing.assert_close(product(found), sum(map(product, given)))


@pytest.mark.parametrize("space", [knots, core_space])
def test_updates_of_size_zero_stay_zero(space):
    zero = [LowRank(torch.zeros(11, 2), torch.randn(2, 9, generator=draw())) for _ in range(3)]
    assert not product(space(zero, RULES["ties"], density=0.4, draw=draw())).any()
