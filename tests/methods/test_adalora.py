"""AdaLoRA: layer, penalty and allocation are peft's, on its golden and on whole models; the budget is really spent."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.rank_budget import RankBudget, RankSchedule, TripletLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods import adalora
from mtlbench_methods.adalora import AdaLora

GOLDENS = Path(__file__).parents[1] / "goldens"
BUILDERS = [tiny_causal, tiny_seq2seq]
PAIRS = (("down", "lora_A"), ("values", "lora_E"), ("up", "lora_B"))


def collated(setup, rows=None):
    return collate(
        rows or toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )


def attached(build, *, noise=0.1, total_steps=10, **settings):
    model = build(0)
    setup = setup_for(model, total_steps=total_steps)
    method = AdaLora(**{"init_rank": 4, "target_rank": 2, **settings})
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup, method


def triplets(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TripletLinear)}


def loop_for(model, setup, method, *, steps=20, on_step=None):
    return toy_loop(
        model,
        method,
        setup,
        Protocol(steps=steps, batch_size=12, learning_rate=1e-2, evals_per_run=10, patience=100),
        on_step=on_step,
    )


def left(model):
    """Rank of every adapted linear."""
    return {name: int((module.values != 0).sum()) for name, module in triplets(model).items()}


def pruned(build, *ranks):
    """A model whose first layers have the given ranks left, and the others all four."""
    model, setup, method = attached(build)
    with torch.no_grad():
        for rank, module in zip(ranks, triplets(model).values(), strict=False):
            module.values[: module.values.shape[0] - rank] = 0
    return model, setup, method


def golden():
    with np.load(GOLDENS / "adalora.npz") as file:
        return json.loads((GOLDENS / "adalora.json").read_text())["config"], dict(file)


def golden_layer(dtype):
    config, arrays = golden()

    def tensor(name):
        return torch.from_numpy(arrays[name]).to(dtype)

    base = nn.Linear(12, 10).to(dtype).requires_grad_(False)
    base.weight.data, base.bias.data = tensor("W"), tensor("b")
    of = partial(adalora.factors, scale=config["alpha"] / (config["init_r"] + 1e-5))
    parameters = {mine: tensor(f"param/{theirs[-1]}") for mine, theirs in PAIRS}
    return TripletLinear(base, parameters, of), arrays


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_output_gradients_and_penalty_equal_the_official_ones(dtype, tolerance):
    layer, arrays = golden_layer(dtype)

    def error(got, want):
        return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()

    x = torch.from_numpy(arrays["x"]).to(dtype).requires_grad_()
    y = layer(x)
    (y * torch.from_numpy(arrays["cotangent"]).to(dtype)).sum().backward()
    assert error(y, arrays["y"]) < tolerance
    assert error(x.grad, arrays["grad/x"]) < tolerance
    for mine, theirs in PAIRS:
        assert error(layer.get_parameter(mine).grad, arrays[f"grad/{theirs[-1]}"]) < tolerance, mine
    schedule = RankSchedule(start=6, end=3, first=2, last=8, every=1)
    budget = RankBudget({"layer": layer}, schedule, beta1=0.85, beta2=0.85)
    assert error(budget.orthogonality(), arrays["orth_norms"].mean()) < tolerance


def test_the_allocation_follows_the_official_trace():
    layer, arrays = golden_layer(torch.float64)
    schedule = RankSchedule.of(10, prune_from=0.2, prune_until=0.8, every=1, start=6, end=3)
    assert (schedule.first, schedule.last) == (2, 8)
    budget = RankBudget({"layer": layer}, schedule, beta1=0.85, beta2=0.85)
    for mine, theirs in PAIRS:
        layer.get_parameter(mine).grad = torch.from_numpy(arrays[f"grad/{theirs[-1]}"])
    trace = arrays["alloc_trace"]
    assert len(trace) == 9
    for step, left, _ in trace:
        budget.allocate(int(step))
        assert int((layer.values != 0).sum()) == left, step
    assert trace[0, 1] == 6
    assert trace[-1, 1] == 3


def peft_twin(build, setup, ours, **changes):
    """peft's AdaLoRA with the parameters of ``ours``, and pairs of ours and theirs."""
    config = AdaLoraConfig(
        task_type="SEQ_2_SEQ_LM" if setup.architecture == "seq2seq" else "CAUSAL_LM",
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=[*setup.target_modules],
        **changes,
    )
    theirs = get_peft_model(build(0), config)
    pairs = []
    for name, module in triplets(ours).items():
        other = theirs.get_submodule(f"base_model.model.{name}")
        pairs += [(module.get_parameter(mine), getattr(other, part)["default"]) for mine, part in PAIRS]
    assert len(pairs) == 3 * len(setup.target_modules)
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    return theirs, pairs


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("delta_t", [1, 3])
def test_training_and_allocation_equal_peft_on_a_whole_model(build, delta_t):
    total = 20
    settings = {"init_rank": 5, "target_rank": 2, "prune_from": 0.1, "prune_until": 0.7, "delta_t": delta_t}
    ours, setup, method = attached(build, noise=0.0, total_steps=total, dropout=0.0, **settings)
    theirs, pairs = peft_twin(
        build, setup, ours, init_r=5, target_r=2, tinit=2, tfinal=6, deltaT=delta_t, total_step=total
    )
    batches = [collated(setup, toy_rows(tasks=3, rows=2, seed=seed)) for seed in range(total)]
    # plain descent: AdamW would turn rounding noise in near-zero gradients into steps of full size
    optimizers = [torch.optim.SGD([pair[side] for pair in pairs], lr=0.5) for side in (0, 1)]
    seen = set()
    for step, batch in enumerate(batches):
        losses = []
        for model, optimizer in zip((ours, theirs.base_model.model), optimizers, strict=True):
            optimizer.zero_grad()
            loss = row_losses(model, batch, setup.routing).mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        method.after_step(ours, step)
        theirs.base_model.update_and_allocate(step + 1)
        masks = [tuple(torch.cat([pair[side] != 0 for pair in pairs[1::3]]).flatten().tolist()) for side in (0, 1)]
        assert masks[0] == masks[1], step
        seen.add(masks[0])
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    assert len(seen) > 3
    assert sum(masks[0]) == 2 * len(triplets(ours))
    assert len({int((layer.values != 0).sum()) for layer in triplets(ours).values()}) > 1


@pytest.mark.parametrize("build", BUILDERS)
def test_the_penalty_equals_pefts_and_stays_out_of_row_losses(build):
    ours, setup, method = attached(build)
    theirs, pairs = peft_twin(build, setup, ours, init_r=4, target_r=2, total_step=10, orth_reg_weight=0.5)
    batch = collated(setup)
    rows = row_losses(ours, batch, setup.routing)
    total = method.loss(rows, batch.tasks, ours)
    labels = torch.full(batch.inputs["input_ids"].shape, -100)
    labels[:, 1] = 5
    inputs = {n: batch.inputs[n] for n in ("input_ids", "attention_mask") if n in batch.inputs}
    with_penalty = theirs(**inputs, labels=labels).loss
    without = theirs.base_model.model(**inputs, labels=labels).loss
    penalty = total - rows.mean()
    torch.testing.assert_close(penalty, with_penalty - without, rtol=1e-5, atol=1e-5)
    assert penalty > 0.5
    for one, other in zip((penalty, with_penalty - without), (0, 1), strict=True):
        vectors = [pair[other] for pair in pairs[0::3] + pairs[2::3]]
        for p, grad in zip(vectors, torch.autograd.grad(one, vectors), strict=True):
            p.grad = grad
    for mine, theirs_ in pairs[0::3] + pairs[2::3]:
        torch.testing.assert_close(mine.grad, theirs_.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_budget_is_spent_in_training_and_only_settled_states_are_kept(build):
    model, setup, method = attached(build, noise=0.0, total_steps=20, dropout=0.0)
    ranks = []
    loop = loop_for(model, setup, method, on_step=lambda step, losses, tasks: ranks.append(sum(left(model).values())))
    method.fit(model, loop)
    count = len(triplets(model))
    assert ranks[:2] == [4 * count] * 2
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[5] > 2 * count
    assert ranks[11:] == [2 * count] * 9
    assert [step for step, _ in loop.progress.stop_losses] == [12, 14, 16, 18, 20]
    assert sum(left(model).values()) == 2 * count
    assert loop.progress.losses[-1][1] < loop.progress.losses[0][1]


def test_the_reported_stop_loss_has_no_penalty():
    model, setup, method = attached(tiny_causal, total_steps=20, dropout=0.0, orthogonal=5.0)
    loop = loop_for(model, setup, method, steps=20)
    method.fit(model, loop)
    batch = collated(setup, loop.splits.stop)
    plain = row_losses(model, batch, setup.routing)
    means = torch.stack([plain[batch.tasks == task].mean() for task in range(3)])
    best = dict(loop.progress.stop_losses)[loop.progress.best_step]
    assert best == pytest.approx(float(means.mean().detach()), rel=1e-4)
    assert loop.progress.losses[-1][1] > best + 1


@pytest.mark.parametrize("total", [2, 3, 7, 40, 1000])
@pytest.mark.parametrize(("prune_from", "prune_until"), [(0.1, 0.6), (0.0, 1.0), (0.98, 0.99), (0.0, 0.01)])
def test_every_budget_of_steps_ends_at_the_target(total, prune_from, prune_until):
    schedule = RankSchedule.of(total, prune_from=prune_from, prune_until=prune_until, every=7, start=120, end=80)
    assert 0 <= schedule.first < schedule.last <= total
    assert schedule.last >= 2
    budgets = [schedule.budget(step) for step in range(1, total + 1)]
    decided = [budget for budget in budgets if budget is not None]
    assert decided == sorted(decided, reverse=True)
    assert decided[-1] == budgets[schedule.last - 1] == 80
    assert all(budget is None for budget in budgets[: schedule.first] + budgets[schedule.last :])


def test_two_steps_keep_the_target_and_one_is_refused():
    model, setup, method = attached(tiny_causal, noise=0.0, total_steps=2, dropout=0.0)
    method.fit(model, loop_for(model, setup, method, steps=2))
    assert sum(left(model).values()) == 2 * len(triplets(model))
    assert method.refuse(setup) is None
    assert "1 steps" in AdaLora().refuse(setup_for(model, total_steps=1))


def test_a_target_as_high_as_the_start_prunes_nothing():
    model, setup, method = attached(tiny_causal, noise=0.0, total_steps=6, target_rank=4)
    method.fit(model, loop_for(model, setup, method, steps=6))
    assert set(left(model).values()) == {4}


@pytest.mark.parametrize("build", BUILDERS)
def test_merging_keeps_the_function_and_notes_the_ranks(build):
    model, setup, method = pruned(build, 0, 1, 3)
    ranks = left(model)
    assert list(ranks.values())[:4] == [0, 1, 3, 4]
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    before = {name: model.get_submodule(name).weight.clone() for name in setup.target_modules}
    bases = {name: model.get_submodule(name).base for name in setup.target_modules}
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(bases[name].weight, before[name]) for name in before)
    assert [module.notes() for module in model.modules() if isinstance(module, RankBudget)] == [{"ranks": ranks}]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build(0).parameters())


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("finished", [False, True])
def test_peft_reads_the_export_as_a_lora_of_the_final_ranks(build, finished, tmp_path):
    model, setup, method = pruned(build, 0, 1, 3)
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    ranks = left(model)
    if finished:
        method.finish(model)
    method.export(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    loaded = PeftModel.from_pretrained(build(0), tmp_path)
    torch.testing.assert_close(label_logits(loaded.base_model.model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)
    for name, rank in ranks.items():
        down = loaded.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
        assert down.shape[0] == max(1, rank), name
        assert (rank == 0) == (not down.any()), name


def test_what_is_saved_reads_back(tmp_path):
    model, setup, method = attached(tiny_causal, noise=0.0, total_steps=20, dropout=0.0)
    method.fit(model, loop_for(model, setup, method))
    save_adapter(model, tmp_path, {})
    again, _, _ = attached(tiny_causal, noise=0.5, total_steps=20)
    load_adapter(again, tmp_path)
    assert left(again) == left(model)
    batch = collated(setup)
    assert torch.equal(label_logits(again, batch, Routing()), label_logits(model, batch, Routing()))


@pytest.mark.parametrize("build", BUILDERS)
def test_the_start_is_the_backbone(build):
    model, setup, _ = attached(build, noise=0.0)
    batch = collated(setup)
    assert torch.equal(label_logits(model, batch, setup.routing), label_logits(build(0), batch, Routing()))
    downs = torch.cat([module.down.detach().flatten() for module in triplets(model).values()])
    assert float(downs.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("build", BUILDERS)
def test_gradient_checkpointing_gives_the_same_gradients(build):
    model, setup, _ = attached(build, dropout=0.3)
    other = copy.deepcopy(model)
    batch = collated(setup)
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        torch.manual_seed(5)
        with context:
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("build", BUILDERS)
def test_beams_give_what_one_row_alone_gives(build):
    model, _, _ = attached(build, noise=0.3)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16], [1, 13, 17, 18]])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], generate([row])[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"init_rank": 0},
        {"target_rank": 13},
        {"target_rank": 0},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"target": "q proj"},
        {"prune_from": 1.0},
        {"prune_until": 0.1},
        {"prune_until": 1.5},
        {"delta_t": 0},
        {"beta1": 1.0},
        {"beta2": 0.0},
        {"orthogonal": -0.1},
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"adalora\[{name}={value}\].*must be"):
        AdaLora(**settings)
