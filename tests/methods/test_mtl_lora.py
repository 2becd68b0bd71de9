"""MTL-LoRA on whole models: rows follow their task id, in mixed batches and under beams."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.low_rank.layer import merge_low_rank
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods.mtl_lora import MtlLora

BUILDERS = [tiny_causal, tiny_seq2seq]


def attached(build, *, noise=0.3, **settings):
    model = build(0)
    setup = setup_for(model)
    MtlLora(**{"rank": 4, "target": "all", **settings}).attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup


def collated(setup, rows):
    device = torch.device("cpu")
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=device)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("lambda_format", ["full", "diagonal"])
def test_a_mixed_batch_equals_one_batch_per_task(build, lambda_format):
    model, setup = attached(build, lambda_format=lambda_format)
    rows = toy_rows(tasks=3, rows=2)
    rows = [rows[i] for i in (4, 0, 2, 5, 1, 3)]
    mixed = row_losses(model, collated(setup, rows), setup.routing)
    for task in range(3):
        at = [i for i, row in enumerate(rows) if row.task == task]
        alone = row_losses(model, collated(setup, [rows[i] for i in at]), setup.routing)
        torch.testing.assert_close(mixed[at], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_another_order_of_ids_changes_the_losses(build):
    model, setup = attached(build)
    batch = collated(setup, toy_rows(tasks=3, rows=2))
    losses = row_losses(model, batch, setup.routing)
    object.__setattr__(batch, "tasks", batch.tasks.roll(2))
    assert (row_losses(model, batch, setup.routing) - losses).abs().max() > 1e-2


@pytest.mark.parametrize("build", BUILDERS)
def test_the_start_is_the_backbone(build):
    model, setup = attached(build, noise=0.0)
    batch = collated(setup, toy_rows(tasks=3, rows=2))
    assert torch.equal(label_logits(model, batch, setup.routing), label_logits(build(0), batch, Routing()))


@pytest.mark.parametrize("build", BUILDERS)
def test_beams_follow_their_row(build):
    model, setup = attached(build)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16], [1, 11, 12, 13]])
    tasks = torch.tensor([2, 0, 1])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        with setup.routing.of(tasks[at]):
            return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], generate([row])[0])
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("build", BUILDERS)
def test_gradient_checkpointing_inside_the_routing_gives_the_same_gradients(build):
    model, setup = attached(build)
    other = copy.deepcopy(model)  # shares no routing: deepcopy copies it
    for module in other.modules():
        if hasattr(module, "routing"):
            module.routing = setup.routing
    batch = collated(setup, toy_rows(tasks=3, rows=2))
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        torch.manual_seed(3)
        with context, setup.routing.of(batch.tasks):
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


def test_tables_by_task_do_not_decay():
    model, _ = attached(tiny_causal)
    others, tables = MtlLora().param_groups(model, 0.5)
    assert tables["weight_decay"] == 0.0
    assert "weight_decay" not in others
    assert {p.shape[0] for p in tables["params"]} == {3}
    count = sum(p.requires_grad for p in model.parameters())
    assert len(tables["params"]) + len(others["params"]) == count
    assert len(tables["params"]) == count // 2


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("lambda_format", ["full", "diagonal"])
def test_the_lora_that_a_task_sees_is_exported_and_merged(build, lambda_format, tmp_path):
    model, setup = attached(build, lambda_format=lambda_format)
    rows = [row for row in toy_rows(tasks=3, rows=2) if row.task == 1]
    batch = collated(setup, rows)
    logits = label_logits(model, batch, setup.routing)
    MtlLora().export(model, tmp_path, task=1)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    torch.testing.assert_close(label_logits(loaded, batch, Routing()), logits, rtol=1e-4, atol=1e-4)
    merge_low_rank(model, task=1)
    torch.testing.assert_close(label_logits(model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)


def test_without_a_task_it_cannot_be_exported_or_merged(tmp_path):
    model, _ = attached(tiny_causal)
    with pytest.raises(PluginError, match="task"):
        MtlLora().export(model, tmp_path)
    with pytest.raises(ValueError, match="task"):
        merge_low_rank(model)


@pytest.mark.parametrize(
    "settings", [{"ups": 0}, {"temperature": 0.0}, {"temperature": -1.0}, {"lambda_format": "square"}, {"rank": -1}]
)
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=name) as caught:
        MtlLora(**settings)
    assert str(value) in str(caught.value)
