"""PEML through the real training loop: the search, what it derives, and an end that does not change the function."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mtlbench.api.cell import Protocol
from mtlbench.backbones.backbone import stored_count
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.nn.prefixes.inject import StaticPrefix
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, saved_names, trainable_names
from mtlbench.training.objective import objective_of
from mtlbench_methods.lora import Lora
from mtlbench_methods.peml import Peml

torch.set_num_threads(1)
BUILDERS = [tiny_causal, tiny_seq2seq]
SMALL = Peml(prefix_length=5, layers=3, rank=4, search_share=0.5, warmup_share=0.25)
STEPS = 24  # 12 of search, 3 of them a warm-up; cuts before steps 6, 9 and 12


def attached(build, method=SMALL):
    model = build(0)
    setup = setup_for(model, total_steps=STEPS)
    method.attach(model, setup)
    return model, setup


def batch_for(setup, rows=None):
    rows = rows or toy_rows(tasks=3, rows=2)
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=torch.device("cpu"))


def loop_for(model, method, setup, *, on_step=None, **protocol):
    settings = {"steps": STEPS, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 4, "patience": 9}
    return toy_loop(model, method, setup, Protocol(**{**settings, **protocol}), on_step=on_step)


def encoder_of(model):
    return model.mtlbench_prefix.source


def trained(build, method=SMALL, **protocol):
    model, setup = attached(build, method)
    seen = []

    def on_step(step, losses, tasks):
        encoder = encoder_of(model)
        seen.append((encoder.alpha.detach().clone(), encoder.size))

    loop = loop_for(model, method, setup, on_step=on_step, **protocol)
    method.fit(model, loop)
    return model, setup, seen, loop


@pytest.mark.parametrize("update", ["alternate", "joint"])
@pytest.mark.parametrize("build", BUILDERS)
def test_the_search_warms_up_moves_shrinks_and_ends(build, update):
    method = replace(SMALL, arch_update=update)
    start = encoder_of(attached(build, method)[0]).alpha.detach().clone()
    model, _, seen, _ = trained(build, method)
    logits = [alpha for alpha, _ in seen]
    assert len(seen) == STEPS
    assert all(torch.equal(alpha, start) for alpha in logits[:3])
    assert not any(torch.equal(one, two) for one, two in pairwise(logits[2:12]))
    assert [size for _, size in seen] == [12] * 6 + [6] * 3 + [3] * 3 + [1] * 12
    assert all(torch.equal(alpha, logits[12]) for alpha in logits[12:])
    encoder = encoder_of(model)
    best = [encoder.operations[j].name for j in logits[11].argmax(1).tolist()]
    assert encoder.architecture() == [[name] for name in best]


def test_only_the_network_that_was_found_is_scored_and_kept():
    *_, loop = trained(tiny_causal, evals_per_run=STEPS)
    assert [step for step, _ in loop.progress.stop_losses] == list(range(13, STEPS + 1))


def test_the_weights_train_and_the_backbone_does_not():
    untouched = attached(tiny_causal)[0]
    model, *_, loop = trained(tiny_causal)
    assert loop.progress.stop_losses[-1][1] < loop.progress.losses[0][1]
    after = dict(model.named_parameters())
    for name, before in untouched.named_parameters():
        assert before.requires_grad or torch.equal(before, after[name])
    encoder, twin = encoder_of(model), encoder_of(untouched)
    assert not torch.equal(encoder.embedding, twin.embedding)
    assert not torch.equal(encoder.output, twin.output)
    for layer, old in zip(encoder.layers, twin.layers, strict=True):
        (chosen,) = layer.survivors
        assert not torch.equal(layer.weights[str(chosen)], old.weights[str(chosen)])
        assert not torch.equal(layer.gamma, old.gamma)
    for name, module in model.named_modules():
        assert not isinstance(module, LowRankLinear) or module.up.abs().max() > 0, name


def test_the_logits_have_their_own_optimizer_only_when_alternating():
    for update in ("alternate", "joint"):
        method = replace(SMALL, arch_update=update)
        model, _ = attached(tiny_causal, method)
        alpha = encoder_of(model).alpha
        groups = method.param_groups(model, 1e-3)
        grouped = [p for group in groups for p in group["params"]]
        assert any(p is alpha for p in grouped) == (update == "joint")
        assert {id(p) for p in grouped} | {id(alpha)} == {id(p) for p in model.parameters() if p.requires_grad}
        assert len({id(p) for p in grouped}) == len(grouped)
        assert "mtlbench_prefix.source.alpha" in trainable_names(model)
        decayed = {id(p) for p in groups[0]["params"]}
        assert groups[0]["weight_decay"] == 0.01 and groups[1]["weight_decay"] == 0.0
        assert id(encoder_of(model).output) in decayed and id(encoder_of(model).embedding) not in decayed


@pytest.mark.parametrize("build", BUILDERS)
def test_finish_keeps_the_function_and_leaves_a_plain_model(build):
    model, setup, *_ = trained(build)
    batch = batch_for(setup)
    before = label_logits(model, batch, setup.routing)
    notes = encoder_of(model).notes()
    SMALL.finish(model)
    after = label_logits(model, batch, setup.routing)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert isinstance(encoder_of(model), StaticPrefix)
    assert not trainable_names(model)
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())
    layers, heads, size = model.mtlbench_prefix.shape
    assert stored_count(model) - stored_count(build(0)) == layers * 2 * heads * size * 5
    assert encoder_of(model).notes() == notes
    found = notes["prefix_nas"]
    assert [(cut["step"], cut["keep"]) for cut in found["trajectory"]] == [(6, 6), (9, 3), (12, 1)]
    assert [len(names) for names in found["architecture"]] == [1, 1, 1]
    assert copy.deepcopy(model)(**batch.inputs).logits.isfinite().all()


@pytest.mark.parametrize("build", BUILDERS)
def test_a_saved_adapter_gives_the_same_model_again(build, tmp_path):
    model, setup, *_ = trained(build)
    save_adapter(model, tmp_path, {})
    SMALL.finish(model)
    again, _ = attached(build)
    load_adapter(again, tmp_path)
    batch = batch_for(setup)
    unfinished = label_logits(again, batch, setup.routing)
    SMALL.finish(again)
    expected = label_logits(model, batch, setup.routing)
    assert torch.equal(label_logits(again, batch, setup.routing), expected)
    torch.testing.assert_close(unfinished, expected, atol=1e-5, rtol=1e-5)


def test_a_run_that_ends_inside_the_search_is_derived():
    method = replace(SMALL, search_share=1.0)
    model, setup, seen, _ = trained(tiny_causal, method)
    assert seen[-1][1] == 3
    assert encoder_of(model).size == 1
    before = label_logits(model, batch_for(setup), setup.routing)
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch_for(setup), setup.routing), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"micro_batch": 5}])
@pytest.mark.parametrize("build", BUILDERS)
def test_memory_settings_do_not_change_training(build, changes):
    """Without dropout: parts of a batch draw other masks."""
    method = replace(SMALL, dropout=0.0, arch_update="joint")
    results = []
    for protocol in ({}, changes):
        model, setup = attached(build, method)
        for layer in encoder_of(model).layers:
            layer.rates.zero_()
        loop = loop_for(model, method, setup, steps=5, clip=0.0, **protocol)
        loop.run()
        results.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    for name, p in results[0].items():
        torch.testing.assert_close(results[1][name], p, atol=2e-4, rtol=1e-3)


def test_the_loss_is_the_mean_over_tasks_and_the_entropy_only_where_it_trains():
    model, _ = attached(tiny_causal)
    encoder = encoder_of(model)
    losses, tasks = torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([2, 0, 0, 0])
    encoder.entropy_weight = 0.5
    assert objective_of(SMALL, 3)(losses, tasks, model).item() == pytest.approx((1 + 5) / 2)
    encoder.alpha_open = True
    assert objective_of(SMALL, 3)(losses, tasks, model).item() == pytest.approx(3 + 0.5 * encoder.entropy().item())


def test_width_follows_narrow_backbones():
    assert encoder_of(attached(tiny_causal)[0]).width == 32
    assert encoder_of(attached(tiny_seq2seq)[0]).width == 32
    assert encoder_of(attached(tiny_causal, replace(SMALL, width=48))[0]).width == 48


def test_starting_values_come_from_the_seed_alone():
    torch.manual_seed(1)
    one = attached(tiny_causal)[0]
    torch.manual_seed(2)
    two = attached(tiny_causal)[0]
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


def test_lora_inside_is_lora():
    """Same names, same starting values, same merge: the settings of LoRA mean what they mean there."""
    model, setup = attached(tiny_causal)
    plain = tiny_causal(0)
    Lora(rank=4).attach(plain, setup)
    ours = {name: p for name, p in model.named_parameters() if not name.startswith("mtlbench_prefix")}
    assert list(ours) == [name for name, _ in plain.named_parameters()]
    for name, p in plain.named_parameters():
        assert torch.equal(p, ours[name])


def test_what_cannot_work_is_refused():
    setup = setup_for(tiny_causal(0))
    assert SMALL.refuse(setup) is None
    assert "prefix_length=64 is not below max_length=64" in (replace(SMALL, prefix_length=64).refuse(setup) or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix_length": 0}, {"layers": 0}, {"width": 0}, {"where": "end"}, {"bias": "none"}, {"rank": 0},
        {"dropout": 1.0}, {"weight_decay": -0.1}, {"arch_update": "both"}, {"arch_learning_rate": 0.0},
        {"entropy": -1.0}, {"entropy": float("nan")}, {"search_share": 0.0}, {"search_share": 1.1},
        {"warmup_share": 1.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(RequestError, match=re.escape(f"peml[{name}={value}]: {name} must be ")):
        Peml(**wrong)


def test_a_saved_adapter_holds_the_derived_network_only_and_loads_into_a_fresh_one(tmp_path):
    model, *_ = trained(tiny_causal)
    save_adapter(model, tmp_path, {})
    encoder = encoder_of(model)
    own = [name for name in saved_names(tmp_path) if name.startswith("mtlbench_prefix.source.layers.0.weights.")]
    assert own == [f"mtlbench_prefix.source.layers.0.weights.{encoder.layers[0].survivors[0]}"]
    again, _ = attached(tiny_causal)
    load_adapter(again, tmp_path)
    assert encoder_of(again).architecture() == encoder.architecture()
    assert torch.equal(encoder_of(again).collapse(), encoder.collapse())
    counted = sum(p.numel() for p in encoder.parameters()) - encoder.alpha.numel()
    assert counted == encoder.notes()["prefix_nas"]["derived_parameters"]


def test_controls_train_a_drawn_or_a_named_architecture_without_a_search():
    drawn = [trained(tiny_causal, replace(SMALL, architecture="random"))[0] for _ in range(2)]
    found = [encoder_of(model).notes()["prefix_nas"]["architecture"] for model in drawn]
    assert found[0] == found[1] and len({str(layer) for layer in found[0]}) > 1, "by the seed, a draw for each layer"
    named = trained(tiny_causal, replace(SMALL, architecture="relu-drop0.5"))[0]
    assert encoder_of(named).notes()["prefix_nas"] == {
        **encoder_of(named).notes()["prefix_nas"],
        "architecture": [["relu-drop0.5"]] * 3,
        "trajectory": [],
    }
    with pytest.raises(RequestError, match="architecture must be search, random, or one or 3 of"):
        replace(SMALL, architecture="relu")
