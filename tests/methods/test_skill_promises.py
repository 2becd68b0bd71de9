"""What Poly, MHR and C-Poly promise alike, on whole models."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError
from mtlbench.nn.low_rank.layer import LowRankLinear, merge_low_rank
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods.cpoly import CPoly
from mtlbench_methods.mhr import Mhr
from mtlbench_methods.poly import Poly

BUILDERS = [tiny_causal, tiny_seq2seq]
METHODS = [
    Poly(target="all"),
    Mhr(target="all", granularity="blockwise"),
    CPoly(target="all"),
    CPoly(target="all", specific="onehot", specific_skills=2, splits=2),
    CPoly(target="all", mix="outputs"),
    CPoly(target="all", mix="outputs", specific="onehot", specific_skills=2),
]
every = [
    pytest.mark.parametrize("build", BUILDERS),
    pytest.mark.parametrize(
        "method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'mix', '')}-{getattr(m, 'specific', '')}"
    ),
]


def for_all(test):
    for mark in every:
        test = mark(test)
    return test


def attached(build, method, *, noise=0.3, seed=0):
    model = build(0)
    setup = setup_for(model, seed=seed)
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup


def batch_of(setup, rows=None):
    rows = rows or toy_rows(tasks=3, rows=2)
    device = torch.device("cpu")
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=device)


def backward(model, setup, batch):
    with setup.routing.of(batch.tasks):
        row_losses(model, batch, setup.routing).mean().backward()


@for_all
def test_the_start_is_the_backbone_in_both_modes_whatever_the_global_seed(build, method):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, setup = attached(build, method, noise=0.0, seed=7)
        states.append({name: p for name, p in model.named_parameters() if p.requires_grad})
        batch = batch_of(setup)
        stock = build(0)
        assert torch.equal(label_logits(model, batch, setup.routing), label_logits(stock, batch, Routing()))
        losses = row_losses(model.train(), batch, setup.routing)
        torch.testing.assert_close(losses, row_losses(stock.train(), batch, Routing()))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@for_all
def test_a_mixed_batch_equals_one_batch_per_task(build, method):
    model, setup = attached(build, method)
    rows = toy_rows(tasks=3, rows=2)
    rows = [rows[i] for i in (4, 0, 2, 5, 1, 3)]
    mixed = row_losses(model, batch_of(setup, rows), setup.routing)
    for task in range(3):
        at = [i for i, row in enumerate(rows) if row.task == task]
        alone = row_losses(model, batch_of(setup, [rows[i] for i in at]), setup.routing)
        torch.testing.assert_close(mixed[at], alone, rtol=1e-4, atol=1e-4)


@for_all
def test_another_order_of_ids_changes_the_losses(build, method):
    model, setup = attached(build, method)
    batch = batch_of(setup)
    losses = row_losses(model, batch, setup.routing)
    object.__setattr__(batch, "tasks", batch.tasks.roll(2))
    assert (row_losses(model, batch, setup.routing) - losses).abs().max() > 1e-3


@for_all
def test_noise_is_drawn_for_every_row_in_training_only(build, method):
    model, setup = attached(build, method)
    row = toy_rows(tasks=3, rows=1)[1]
    batch = batch_of(setup, [row, row])
    one, other = row_losses(model, batch, setup.routing)
    torch.testing.assert_close(one, other)
    one, other = row_losses(model.train(), batch, setup.routing)
    assert (one - other).abs() > 1e-4


@for_all
def test_every_parameter_gets_a_gradient_and_rows_of_absent_tasks_exact_zeros(build, method):
    model, setup = attached(build, method)
    model.train()
    backward(model, setup, batch_of(setup, [row for row in toy_rows(tasks=3, rows=2) if row.task != 1]))
    seen = set()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        assert p.grad.isfinite().all()
        assert p.grad.abs().max() > 0
        if (last := name.rpartition(".")[2]) in ("logits", "specific"):
            seen.add(last)
            assert p.shape[0] == 3
            assert p.grad[1].abs().max() == 0
        elif getattr(method, "specific", "") == "onehot":
            own = slice(method.common + method.specific_skills, method.common + 2 * method.specific_skills)
            assert p.grad[:, own].abs().max() == 0
    assert seen == {"logits", "specific"} if getattr(method, "specific", "") == "eye_trainable" else {"logits"}


@for_all
def test_gradient_checkpointing_replays_the_noise(build, method):
    model, setup = attached(build, method, noise=0.1)
    other = copy.deepcopy(model)  # shares no routing: deepcopy copies it
    for module in other.modules():
        if isinstance(module, LowRankLinear):
            module.routing = setup.routing
    batch = batch_of(setup)
    grads = []
    for each, context, seed in ((model, nullcontext(), 3), (other, checkpointing(other), 3), (model, nullcontext(), 4)):
        each.train().zero_grad()
        torch.manual_seed(seed)
        with context:
            backward(each, setup, batch)
        grads.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.requires_grad]))
    want, got, noisier = grads
    assert (got - want).norm() < 1e-4 * want.norm()
    assert (noisier - want).norm() > 1e-2 * want.norm()


@for_all
def test_autocast_gives_float32_gradients_near_those_of_float32(build, method):
    model, setup = attached(build, method, noise=0.1)
    batch, grads = batch_of(setup), []
    for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        model.zero_grad()
        with context:
            backward(model, setup, batch)
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert (grads[1] - grads[0]).norm() < 0.2 * grads[0].norm()


@for_all
def test_beams_follow_their_row(build, method):
    model, setup = attached(build, method)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16], [1, 11, 12, 13]])
    tasks = torch.tensor([2, 0, 1])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        with setup.routing.of(tasks[at]):
            return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], generate([row])[0])


@for_all
def test_what_a_task_sees_is_a_lora(build, method, tmp_path):
    model, setup = attached(build, method)
    batch = batch_of(setup, [row for row in toy_rows(tasks=3, rows=2) if row.task == 1])
    logits = label_logits(model, batch, setup.routing)
    with pytest.raises(PluginError, match="task"):
        method.export(model, tmp_path)
    method.export(model, tmp_path, task=1)
    loaded = PeftModel.from_pretrained(build(0), tmp_path)
    ranks = {m.r["default"] for m in loaded.modules() if hasattr(m, "lora_A") and hasattr(m, "r")}
    own = getattr(method, "specific_skills", 0) * (3 if getattr(method, "specific", "") == "eye_trainable" else 1)
    outputs = getattr(method, "mix", "params") == "outputs"
    assert ranks == {method.rank * (method.common + own) if outputs else method.rank}
    torch.testing.assert_close(label_logits(loaded.base_model.model, batch, Routing()), logits, rtol=1e-3, atol=1e-3)
    merge_low_rank(model, task=1)
    torch.testing.assert_close(label_logits(model, batch, Routing()), logits, rtol=1e-3, atol=1e-3)


@for_all
def test_router_tables_do_not_decay_and_logits_have_their_rate(build, method):
    model, _ = attached(build, method)
    groups = {**vars(method), "logits_lr": 100.0}
    skills, logits, specific = type(method)(**groups).param_groups(model, 0.5)
    assert (skills["lr"], logits["lr"], specific["lr"]) == (0.5, 50.0, 0.5)
    assert "weight_decay" not in skills
    assert logits["weight_decay"] == specific["weight_decay"] == 0.0
    assert {p.dim() for p in skills["params"]} == {4}
    assert all(p.shape[0] == 3 for p in [*logits["params"], *specific["params"]])
    grouped = [id(p) for group in (skills, logits, specific) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@for_all
def test_the_record_is_told_what_one_task_uses(build, method):
    model, setup = attached(build, method, noise=0.0)
    notes = model.mtlbench_skills.notes()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    others = 0
    for name, p in model.named_parameters():
        if p.requires_grad and name.rpartition(".")[2] in ("logits", "specific"):
            others += p.numel() * 2 // 3
        elif p.requires_grad and (own := getattr(method, "specific_skills", 0)):
            others += p.numel() // p.shape[1] * own * 2
    assert notes["active_parameters"] == trainable - others
    skills = getattr(method, "skills", getattr(method, "common", 0))
    assert set(notes["mixtures"]) == {task.name for task in setup.tasks}
    for mixture in notes["mixtures"].values():
        assert mixture == pytest.approx([1 / skills] * skills, abs=1e-3)
