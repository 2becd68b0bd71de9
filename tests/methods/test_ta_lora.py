"""TA-LoRA: its prompts against the recorded equation, its attention against LLaMA-Adapter, its stages and settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attached import BUILDERS, attached, batch_for
from torch import nn

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError, RequestError
from mtlbench.evaluation.packable import packable
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.files.stop_request import StopRequest
from mtlbench.nn.attachments import get_state
from mtlbench.nn.prefixes.attention import AttentionSlot, gated_prefix_attention
from mtlbench.nn.prefixes.fast_slow import FastSlowPrompts
from mtlbench.testing import check_method, setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.splits import carve, phases
from mtlbench_methods.prefix_method import encoder_of
from mtlbench_methods.ta_lora import TaLora

GOLDENS = Path(__file__).parents[1] / "goldens"
SMALL = TaLora(prefix_length=5, rank=2)


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return json.loads((GOLDENS / f"{name}.json").read_text())["config"], dict(arrays)


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()


class Width:
    """All that the prompts themselves need of the projections."""

    def __init__(self, width):
        self.width = width


def prompts_of(name, dtype):
    config, arrays = golden(name)
    prompts = FastSlowPrompts(
        Width(config["d"]),
        Routing(),
        layers=config["L"],
        tasks=config["T"],
        trained=config["T"],
        length=config["m"],
        rank=config["r"],
        scale=config["scale"],
        heads=None,
        squash=True,
        split=True,
        free=False,
        draw=torch.Generator(),
    ).to(dtype)
    ours = {"shared": "P0", "slow": "B", "left": "u", "right": "v"}
    with torch.no_grad():
        for mine, theirs in ours.items():
            prompts.get_parameter(mine).copy_(torch.from_numpy(arrays[f"param/{theirs}"]))
    return prompts, arrays, ours


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_prompts_their_gradients_and_their_overlap_equal_the_recorded_ones(dtype, tolerance):
    prompts, arrays, ours = prompts_of("ta_lora", dtype)
    weight = golden("ta_lora")[0]["lambda_ortho"]
    rows = prompts.prompts().transpose(0, 1)[torch.from_numpy(arrays["task_ids"])]
    ((rows * torch.from_numpy(arrays["cotangent"]).to(dtype)).sum() + weight * prompts.overlap()).backward()
    assert error(rows, arrays["y"]) < tolerance
    for mine, theirs in ours.items():
        assert error(prompts.get_parameter(mine).grad, arrays[f"grad/{theirs}"]) < tolerance, mine
    assert error(prompts.overlap(), arrays["reg_cos"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-7), (torch.float32, 5e-6)])
def test_gated_attention_equals_that_of_llama_adapter(dtype, tolerance):
    """The official code rounds its softmax to float32, which is all that float64 leaves apart here."""
    config, arrays = golden("zero_init_attention")
    heads, size = config["heads"], config["d"] // config["heads"]
    leaves = {n: torch.from_numpy(a).to(dtype).requires_grad_() for n, a in arrays.items() if n.startswith("param/")}
    prompt = torch.from_numpy(arrays["prompt"]).to(dtype).requires_grad_()
    x = torch.from_numpy(arrays["x"]).to(dtype)

    def split(name, given):
        return (given @ leaves[f"param/{name}.weight"].T).unflatten(-1, (heads, size)).transpose(1, 2)

    angles = torch.outer(torch.arange(config["seq"]), 1e4 ** (-torch.arange(0, size, 2) / size)).to(dtype)

    def turn(given):  # Meta's rotary embedding: pairs of neighbours
        even, odd = given[..., 0::2], given[..., 1::2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    query = turn(split("wq", x))
    stock = nn.functional.scaled_dot_product_attention(query, turn(split("wk", x)), split("wv", x), is_causal=True)
    gate = torch.tanh(leaves["param/gate"]).view(-1)
    added = gated_prefix_attention(query, split("wk", prompt), split("wv", prompt), gate)
    y = (stock.transpose(1, 2) + added).flatten(2) @ leaves["param/wo.weight"].T
    (y * torch.from_numpy(arrays["cotangent"]).to(dtype)).sum().backward()
    assert error(y, arrays["y"]) < tolerance
    assert error(prompt.grad, arrays["grad/prompt"]) < tolerance
    for name, leaf in leaves.items():
        assert error(leaf.grad, arrays[name.replace("param", "grad")]) < tolerance, name
    without = stock.transpose(1, 2).flatten(2) @ leaves["param/wo.weight"].T
    assert error(without, arrays["y_without_prompt"]) < tolerance


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("task_part", ["fast_slow", "low_rank"])
def test_a_sum_projected_part_by_part_is_the_projected_prompt(build, task_part):
    model, _ = attached(build, replace(SMALL, task_part=task_part, prompt_share=0.0))
    prompts = encoder_of(model)
    whole = prompts.prompts()
    flat = prompts.projections.linear(whole.flatten(1, 2), bias=True).unflatten(2, whole.shape[1:3])
    wanted = prompts.projections.by_head(flat)
    torch.testing.assert_close(prompts.keys_and_values(), wanted, atol=1e-5, rtol=1e-5)
    layer = model.mtlbench_prefix.places[0].layers[1]
    by_hand = whole[1, 2] @ getattr(layer, "k_proj" if build is tiny_causal else "k").weight.T
    heads, size = model.mtlbench_prefix.shape[1:]
    torch.testing.assert_close(wanted[1, 0, 2], by_hand.view(5, heads, size).transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", BUILDERS)
def test_only_the_last_layers_have_prompts(build):
    model, setup = attached(build, replace(SMALL, layers=1))
    assert model.mtlbench_prefix.shape.layers == 1
    layers = [m for m in model.get_decoder().modules() if getattr(m, "layer_idx", None) is not None and m.is_causal]
    label_logits(model, batch_for(setup), setup.routing)
    assert [get_state(layer, AttentionSlot).prefix is not None for layer in layers] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"task_part": "low_rank", "start": "svd"},
        {"zero_init": False},
        {"zero_init": False, "layers": 1},
        {"gate": "plain", "prompt_share": 0.0, "orthogonality": 0.0},
    ],
    ids=str,
)
def test_every_ablation_keeps_the_promises_of_a_method(changes):
    check_method(replace(SMALL, **changes))


@pytest.mark.parametrize("where", ["enc+dec", "cross"])
def test_other_places_of_an_encoder_decoder(where):
    model, setup = attached(tiny_seq2seq, replace(SMALL, where=where))
    batch, ids = batch_for(setup), setup.routing
    moved = label_logits(model, batch, ids)
    model.mtlbench_prefix.on = False
    assert not torch.allclose(moved, label_logits(model, batch, ids), atol=1e-3)


@pytest.mark.parametrize("build", BUILDERS)
def test_rows_of_several_sequences_are_scored_together(build):
    model, setup = attached(build, SMALL)
    reader = (CausalReader if build is tiny_causal else Seq2seqReader)(model.eval(), setup.routing, pad_id=0)
    assert packable(reader, max_length=64)


def trained(method=SMALL, *, folder=None, crash_at=None):
    """States after attach, sources and targets, and the losses of every step."""
    model = tiny_causal(0)
    setup = replace(setup_for(model, tasks=4), sources=2)
    protocol = Protocol(sources="a/x,a/y", steps=10, adapt_steps=4, batch_size=8, evals_per_run=1)
    method.attach(model, setup)
    parts = phases(carve(toy_rows(tasks=4, rows=40), held_out=0.2, seed=0), protocol)

    def stepped(step, losses, tasks):
        if step + 1 == crash_at:
            raise KeyboardInterrupt

    loop = toy_loop(
        model,
        method,
        setup,
        parts[0][1],
        splits=parts[0][0],
        on_step=stepped,
        recovery=CheckpointPolicy(CheckpointStore(folder, identity={}), stop=StopRequest(), every_s=0.0)
        if folder
        else None,
    )
    states = [trainable_state(model)]
    method.fit(model, loop)
    states.append(trainable_state(model))
    loop.turn_to(*parts[1])
    method.adapt(model, loop)
    states.append(trainable_state(model))
    return states, loop


def named(state, name):
    return state[f"mtlbench_prefix.source.{name}"]


def test_two_stages_on_the_sources_then_fast_parts_of_the_targets_alone():
    (start, sources, targets), loop = trained()
    assert [stage.steps - stage.first_step for stage in loop.progress.stages] == [2, 8, 4]
    assert not any(name.endswith("free") for name in sources)
    for name in ("shared", "slow", "gate"):
        assert not torch.equal(named(start, name), named(sources, name))
        assert torch.equal(named(sources, name), named(targets, name)), "what is shared stays where the sources left it"
    for name in ("left", "right"):
        one, other = named(sources, name), named(targets, name)
        assert torch.equal(named(start, name)[2:], one[2:]) and torch.equal(one[:2], other[:2])
        assert (other[2:] - one[:2].mean(0)).abs().max() < 0.05 and not torch.equal(other[2], other[3])


def test_targets_may_move_what_is_shared():
    (_, sources, targets), _ = trained(replace(SMALL, adapt_shared=True))
    assert all(not torch.equal(named(sources, name), named(targets, name)) for name in ("shared", "slow", "gate"))


@pytest.mark.parametrize("crash_at", [1, 2, 6, 12])
def test_a_crash_in_any_stage_changes_nothing(tmp_path, crash_at):
    (*_, whole), _ = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(folder=tmp_path, crash_at=crash_at)
    (*_, again), loop = trained(folder=tmp_path)
    assert loop.progress.steps == 14
    assert whole.keys() == again.keys() and all(torch.equal(p, again[name]) for name, p in whole.items())


@pytest.mark.parametrize("task_part", ["fast_slow", "low_rank"])
def test_the_mean_is_shared_and_parts_may_start_closest_to_the_free_prompts(task_part):
    model, _ = attached(tiny_causal, replace(SMALL, task_part=task_part, scale=0.5))
    prompts = encoder_of(model)
    free = prompts.free.detach().clone().transpose(0, 1)
    if task_part == "fast_slow":  # what the slow factor can express with one direction for each task
        exact = prompts.slow[:, None] @ torch.randn(2, 3, 2, 1) @ torch.randn(2, 3, 1, 32)
    else:
        exact = torch.randn(2, 3, 5, 2) @ torch.randn(2, 3, 2, 32)
    exact = exact.detach()
    prompts._fit(exact)
    left, right = prompts.task_parts()
    torch.testing.assert_close(0.5 * left @ right, exact, atol=1e-4, rtol=1e-4)
    prompts.average(fit=True)
    assert prompts.free is None
    torch.testing.assert_close(prompts.shared, free.mean(1))
    assert (prompts.prompts() - free).norm() < (prompts.shared[:, None] - free).norm()


def test_fast_and_slow_parts_and_gates_have_their_own_rates():
    model, _ = attached(tiny_causal, SMALL)
    prompts = encoder_of(model)
    groups = SMALL.param_groups(model, 1e-3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in (prompts.shared, prompts.slow, prompts.free)} == {1e-3}
    assert {rates[id(p)] for p in (prompts.left, prompts.right, prompts.gate)} == {1e-2}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def test_there_is_no_peft_form(tmp_path):
    model, _ = attached(tiny_causal, SMALL)
    with pytest.raises(PluginError, match="share the softmax"):
        SMALL.export(model, tmp_path, task=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 20}, "rank must be at least 1 and below prefix_length=20"),
        ({"layers": 0}, "layers must be"),
        ({"gate": "relu"}, "gate must be tanh or plain"),
        ({"task_part": "full"}, "task_part must be fast_slow or low_rank"),
        ({"prompt_share": 1.0}, "prompt_share must be at least 0 and below 1"),
        ({"prompt_share": 0.0, "start": "svd"}, "start must be zero where prompt_share is 0"),
        ({"fast_learning_rate": 0.0}, "fast_learning_rate must be"),
        ({"orthogonality": -1.0}, "orthogonality must be"),
        ({"where": "mid"}, "where must be"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings, said):
    with pytest.raises(RequestError, match=said):
        TaLora(**settings)


def test_a_backbone_without_key_and_value_linears_is_refused():
    model = tiny_causal(0)
    for layer in model.model.layers:
        layer.self_attn.qkv = nn.Linear(32, 64)
        del layer.self_attn.k_proj
    setup = setup_for(tiny_causal(0))
    with pytest.raises(RequestError, match="has no linear for keys and for values"):
        SMALL.attach(model, setup)
