"""The prefix encoder equals its equations, and shrinking, deriving and collapsing keep what they must."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlbench.nn.prefixes.inject import PrefixShape
from mtlbench.nn.prefixes.nas import ACTIVATIONS, PREFIX_OPERATIONS, PrefixNAS
from mtlbench.nn.prefixes.search import ArchitectureSearch, SearchSchedule

torch.set_num_threads(1)
GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = np.load(GOLDENS / "prefixnas.npz")


def golden(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name])


@torch.no_grad()
def from_golden() -> PrefixNAS:
    config = json.loads((GOLDENS / "prefixnas.json").read_text())["config"]
    assert [op.name for op in PREFIX_OPERATIONS] == config["ops"]
    shape = PrefixShape(config["layers"], config["kv_heads"], config["head_dim"])
    encoder = small(shape=shape, length=config["P"], width=config["h"], layers=config["n"]).double().eval()
    encoder.alpha_open = True
    for name, own in parameters(encoder).items():
        values = golden(f"param/{name}")
        for target, value in zip(own, values if len(own) > 1 else [values], strict=True):
            target.copy_(value.reshape(target.shape))
    for at, layer in enumerate(encoder._searched()):
        for j in range(len(PREFIX_OPERATIONS)):
            layer.weights[str(j)].copy_(golden("param/W")[at, j])
            layer.biases[str(j)].copy_(golden("param/b")[at, j])
    return encoder


def parameters(encoder: PrefixNAS) -> dict[str, list[Tensor]]:
    """Parameters under the names of the golden; stacked ones as lists in order."""
    layers = encoder._searched()
    single = {"E": encoder.embedding, "alpha": encoder.alpha, "Wo": encoder.output, "bo": encoder.output_bias}
    named = {name: [p] for name, p in single.items()}
    return named | {"gamma": [x.gamma for x in layers], "beta": [x.beta for x in layers]}


SHAPE = PrefixShape(2, 2, 3)


def small(*, shape: PrefixShape = SHAPE, length: int = 4, width: int = 8, layers: int = 3, seed: int = 0) -> PrefixNAS:
    draw = torch.Generator().manual_seed(seed)
    return PrefixNAS(shape=shape, length=length, width=width, layers=layers, draw=draw)


def keep(encoder: PrefixNAS, mask: Tensor) -> None:
    for layer, row in zip(encoder._searched(), mask, strict=True):
        layer.keep(row.nonzero().flatten().tolist())


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_equals_the_golden_with_all_gradients() -> None:
    encoder = from_golden()
    kv = encoder()
    close(kv, golden("y"))
    close(kv.permute(3, 0, 1, 2, 4).reshape(4, -1), golden("flat_peft_weight"))
    ((kv * golden("cotangent")).sum() + 0.05 * encoder.entropy()).backward()
    for name, own in parameters(encoder).items():
        gradient = own[0].grad if len(own) == 1 else torch.stack([p.grad for p in own])
        close(gradient, golden(f"grad/{name}"))
    layers = encoder._searched()
    close(torch.stack([torch.stack([w.grad for w in x.weights.values()]) for x in layers]), golden("grad/W"))
    close(torch.stack([torch.stack([b.grad for b in x.biases.values()]) for x in layers]), golden("grad/b"))


def test_survivors_equal_the_golden_masks() -> None:
    encoder = from_golden()
    close(encoder.entropy(), golden("R"))
    keep(encoder, golden("mask6"))
    close(encoder(), golden("y_mask6"))
    close(encoder.entropy(), golden("R_mask6"))
    keep(encoder, golden("mask1"))
    close(encoder(), golden("y_mask1"))
    assert encoder.entropy() == 0


def test_cuts_keep_what_the_golden_masks_keep() -> None:
    """Each cut keeps the largest logits, drops the rest for good, and ends in the arg-max."""
    encoder = from_golden()
    best = encoder.alpha.argmax(1).tolist()
    before = encoder.alpha.detach().clone()
    for size in (6, 3, 1):
        encoder.cut(size)
        mask = golden(f"mask{size}")
        assert [list(x.survivors) for x in encoder._searched()] == [row.nonzero().flatten().tolist() for row in mask]
        assert torch.equal(encoder.alpha.isfinite(), mask)
        assert torch.equal(encoder.alpha[mask], before[mask])
        if size != 3:
            close(encoder(), golden(f"y_mask{size}"))
    assert [x.survivors for x in encoder._searched()] == [(j,) for j in best]
    assert encoder.architecture() == [[PREFIX_OPERATIONS[j].name] for j in best]


def test_ties_keep_the_lower_index() -> None:
    encoder = small()
    torch.nn.init.zeros_(encoder.alpha)
    encoder.cut(3)
    assert {x.survivors for x in encoder._searched()} == {(0, 1, 2)}


def test_one_matrix_product_equals_a_loop_over_operations() -> None:
    encoder = small().double().eval()
    encoder.cut(7)
    x = encoder.embedding
    for layer, logits in zip(encoder._searched(), encoder.alpha, strict=True):
        weights = torch.softmax(logits, dim=0)
        total = torch.zeros_like(x)
        for j, op in enumerate(PREFIX_OPERATIONS):
            z = ACTIVATIONS[op.activation](x @ layer.weights[str(j)].T + layer.biases[str(j)])
            total = total + weights[j] * F.layer_norm(z, (8,), eps=1e-5)
        x = layer.gamma * total + layer.beta
    flat = x @ encoder.output.T + encoder.output_bias
    close(encoder(), flat.view(4, 2, 2, 2, 3).permute(1, 2, 3, 0, 4))


def test_dropped_operations_leave_the_computation() -> None:
    encoder = small()
    encoder.alpha_open = True
    encoder.cut(3)
    encoder().sum().backward()
    for layer in encoder._searched():
        trained = {j for j, w in enumerate(layer.weights.values()) if w.grad is not None}
        assert trained == set(layer.survivors) and len(trained) == 3
    assert encoder.alpha.grad is not None
    assert torch.equal(encoder.alpha.grad[~encoder.alpha.isfinite()], torch.zeros(3 * 9))


def test_each_operation_drops_at_its_own_rate_and_only_in_training() -> None:
    torch.manual_seed(0)
    encoder = small(length=40, width=64, layers=1).train()
    (layer,) = encoder._searched()
    for j, op in enumerate(PREFIX_OPERATIONS):
        layer.keep([j])
        with torch.no_grad():
            layer.biases[str(j)].fill_(3.0)  # away from zero, so that zeros are dropped ones
            z = F.linear(encoder.embedding, 0 * layer.weights[str(j)], layer.biases[str(j)])
            layer.weights[str(j)].zero_()
        out = layer(encoder.embedding, encoder.alpha[0])
        share = (out < 0).float().mean().item()  # below the row's mean: what was dropped
        assert z.min() == 3.0
        assert share == pytest.approx(op.dropout, abs=0.03)
    layer.eval()
    assert torch.equal(layer(encoder.embedding, encoder.alpha[0]), layer(encoder.embedding, encoder.alpha[0]))


def test_entropy_is_one_at_the_start_and_its_gradient_sharpens() -> None:
    encoder = small()
    encoder.alpha_open = True
    assert encoder.entropy().item() == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad():
        encoder.alpha[:, 2] = 1.0
    encoder.entropy().backward()
    assert (encoder.alpha.grad[:, 2] < 0).all()


def test_collapse_and_derive_keep_the_function() -> None:
    encoder = small().train()
    with torch.no_grad():
        encoder.alpha[:, 5] = 50.0
    mixed = encoder.collapse()
    assert encoder.training
    encoder.derive()
    torch.testing.assert_close(encoder.collapse(), mixed, atol=1e-6, rtol=0)
    assert not encoder.collapse().requires_grad
    assert torch.equal(encoder.collapse(), encoder.eval()())


def test_the_logits_alone_say_what_is_left() -> None:
    """A fresh encoder that takes over the parameters by name computes and derives the same network."""
    encoder = small(seed=1).eval()
    encoder.cut(3)
    fresh = small(seed=2).eval()
    with torch.no_grad():
        for own, saved in zip(fresh.parameters(), encoder.parameters(), strict=True):
            own.copy_(saved)
    torch.testing.assert_close(fresh(), encoder(), atol=1e-6, rtol=0)
    fresh.derive()
    encoder.derive()
    assert fresh.architecture() == encoder.architecture()
    assert torch.equal(fresh(), encoder())


def test_the_prefix_is_float32_under_autocast_and_the_same_for_one_seed() -> None:
    encoder = small().eval()
    plain = encoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(), plain)
    assert torch.equal(small().eval()(), plain)
    assert not torch.equal(small(seed=1).eval()(), plain)


def test_without_searched_layers_it_is_an_embedding_and_an_output_layer() -> None:
    encoder = small(layers=0)
    flat = F.linear(encoder.embedding, encoder.output, encoder.output_bias)
    assert torch.equal(encoder(), flat.view(4, 2, 2, 2, 3).permute(1, 2, 3, 0, 4))
    encoder.derive()
    assert encoder.entropy() == 0


def test_parameter_counts_are_those_of_the_equations() -> None:
    encoder = small(length=20, width=16, layers=6, shape=PrefixShape(4, 2, 8))
    h, out = 16, 4 * 2 * 2 * 8
    notes = encoder.notes()["prefix_nas"]
    assert notes["searched_parameters"] == 20 * h + 6 * (12 * (h * h + h) + 2 * h + 12) + (h + 1) * out
    assert notes["derived_parameters"] == 20 * h + 6 * (h * h + 3 * h) + (h + 1) * out
    assert notes["static_numbers"] == 20 * out


def test_the_plan_of_a_search() -> None:
    plan = SearchSchedule.of(1000, share=0.3, warmup_share=0.2)
    assert (plan.steps, plan.warmup) == (300, 60)
    assert [plan.keep(step, 12) for step in (0, 149, 150, 224, 225, 299, 300, 999)] == [12, 12, 6, 6, 3, 3, 1, 1]
    assert [plan.searching(step) for step in (59, 60, 299, 300)] == [False, True, True, False]
    assert plan.ramp(59) == 0 and plan.ramp(299) == 1 and plan.ramp(300) == 0
    assert 0 < plan.ramp(100) < plan.ramp(200) < 1
    assert SearchSchedule.of(1, share=0.3, warmup_share=0.2) == SearchSchedule(1, 0)


def test_the_rate_of_the_logits_follows_the_steps_that_move_them() -> None:
    for steps in (40, 4000):
        plan = SearchSchedule.of(steps, share=0.5, warmup_share=0.2)
        assert plan.rate(6.0) * sum(map(plan.searching, range(steps))) == pytest.approx(6.0)


def test_a_fixed_encoder_has_the_named_operations_and_nothing_to_search() -> None:
    encoder = small()
    names = ["gelu-drop0.1", "relu-drop0.5", "tanh-drop0.3"]
    encoder.fix(names)
    assert encoder.size == 1 and encoder.architecture() == [[name] for name in names]
    assert all(len(layer.weights) == 1 for layer in encoder._searched())
    encoder.derive()
    assert encoder.trajectory == [] and encoder.notes()["prefix_nas"]["architecture"] == [[name] for name in names]


def test_alternating_updates_follow_adam_with_l2_on_the_held_out_loss() -> None:
    """Compared with torch.optim.Adam on the same gradients, over the cuts."""
    encoder, plan = small(), SearchSchedule(8, 2)
    weights = torch.randn(3, 12, generator=torch.Generator().manual_seed(3)) * 20

    def search_loss() -> Tensor:
        alive = encoder.alpha.isfinite()
        return (encoder._logits() * weights)[alive].sum()

    reference = torch.nn.Parameter(encoder.alpha.detach().clone())
    adam = torch.optim.Adam([reference], lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3)
    search = ArchitectureSearch([encoder], plan, search_loss=search_loss, learning_rate=3e-3, entropy_weight=0.05)
    start = encoder.alpha.detach().clone()
    for step in range(9):
        search.before_step(step)
        alive = encoder.alpha.isfinite()
        if plan.searching(step):
            reference.grad = weights * alive
            torch.nn.utils.clip_grad_norm_([reference], 5.0)
            adam.step()
        torch.testing.assert_close(encoder.alpha[alive], reference[alive], atol=1e-7, rtol=0)
        assert torch.equal(encoder.alpha, start) == (step < plan.warmup)
        assert encoder.alpha.grad is None and not encoder.alpha_open
    assert encoder.size == 1
    assert [(cut["step"], cut["keep"]) for cut in encoder.trajectory] == [(4, 6), (6, 3), (8, 1)]
    assert json.loads(json.dumps(encoder.notes())) == encoder.notes()
