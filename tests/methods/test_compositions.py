"""Methods composed by name: one loss, each part's own search, budget and groups; orders; what cannot be composed."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, batch_for
from peft import PeftModel

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.losses import task_means
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, toy_loop, toy_rows
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, saved_names, shrink, trainable_names
from mtlbench.training.loss import row_losses

STEPS = 16
SMALL = "prefix_length=4,layers=2,search_share=0.5"


def method_of(words):
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


def loop_for(model, method, setup, on_step=None):
    protocol = {"steps": STEPS, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 0}
    return toy_loop(model, method, setup, Protocol(**protocol), on_step=on_step)


def attached(build_model, words):
    model, method = build_model(0), method_of(words)
    setup = setup_for(model, total_steps=STEPS)
    method.attach(model, setup)
    return model, method, setup


def trained(build_model, words, on_step=None):
    model, method, setup = attached(build_model, words)
    loop = loop_for(model, method, setup, on_step=None if on_step is None else lambda *a: on_step(model))
    method.fit(model, loop)
    return model, method, setup, loop


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("build_model", BUILDERS)
def test_peml_is_prefixnas_and_lora(build_model):
    flat = trained(build_model, f"peml[{SMALL},rank=4,weight_decay=0.0]")[0]
    summed = trained(build_model, f"prefixnas[{SMALL},weight_decay=0.0]+lora[rank=4]")[0]
    one, other = values(flat), values(summed)
    assert one.keys() == other.keys()
    assert not moved(one, other)


@pytest.mark.parametrize("build_model", BUILDERS)
def test_any_weights_with_any_prefix(build_model, tmp_path):
    words = f"prefixnas[{SMALL}]+mtl_lora[rank=4]"
    start, method, setup = attached(build_model, words)
    model, method, setup, _ = trained(build_model, words)
    assert (method.task_routed, method.identity_at_start) == (True, False)
    encoder = model.mtlbench_prefix.source
    assert encoder.size == 1
    kept = values(model)
    still = set(kept) - moved({n: v for n, v in values(start).items() if n in kept}, kept)
    assert still <= {"mtlbench_prefix.source.alpha"}
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    object.__setattr__(batch, "tasks", batch.tasks.roll(2))
    assert (label_logits(model, batch, setup.routing) - logits).abs().max() > 1e-5
    object.__setattr__(batch, "tasks", batch.tasks.roll(-2))
    save_adapter(model, tmp_path, {})
    again = build_model(0)
    method.attach(again, setup)
    shrink(again, saved_names(tmp_path))
    assert trainable_names(again) == trainable_names(model)
    load_adapter(again, tmp_path)
    assert torch.equal(label_logits(again, batch, setup.routing), logits)
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_the_part_that_defines_one_with_the_penalties_of_the_others():
    model, method, setup = attached(tiny_causal, "prefixnas[prefix_length=4,layers=2]+adalora[orthogonal=0.3]")
    batch = batch_for(setup)
    losses = row_losses(model, batch, setup.routing)
    penalty = 0.3 * model.mtlbench_ranks.orthogonality()
    want = task_means(losses, batch.tasks, 3) + penalty
    torch.testing.assert_close(method.loss(losses, batch.tasks, model), want)
    assert penalty > 0.1


def test_ranks_are_allocated_inside_a_composition():
    model, _, _, _ = trained(tiny_causal, "preembedd[prefix_length=4]+adalora[init_rank=4,target_rank=2]")
    kept = [int((m.values != 0).sum()) for m in model.modules() if hasattr(m, "values") and hasattr(m, "up")]
    assert len(kept) == 14
    assert sum(kept) == 2 * len(kept)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (f"peml[{SMALL},rank=4,order=prefix_then_lora]", "prefix"),
        (f"peml[{SMALL},rank=4,order=lora_then_prefix]", "lora"),
        ("prefix[prefix_length=4]+lora[rank=4]+[order=in_turn]", "prefix"),
        ("prefix[prefix_length=4]+lora[rank=4]+[order=in_reverse]", "lora"),
    ],
)
def test_parts_in_turn_have_half_of_the_budget_each(words, first):
    seen = []
    model, _, _, loop = trained(tiny_causal, words, on_step=lambda model: seen.append(values(model)))
    assert len(seen) == STEPS
    for half, kind in ((seen[: STEPS // 2], first), (seen[STEPS // 2 :], "lora" if first == "prefix" else "prefix")):
        assert half[0].keys() and all(("mtlbench_prefix" in name) == (kind == "prefix") for name in half[0])
        assert moved(half[0], {name: half[-1].get(name, half[0][name]) for name in half[0]})
    assert {stage.steps - stage.first_step for stage in loop.progress.stages} == {STEPS // 2}
    both = set(trainable_names(model))
    assert any("mtlbench_prefix" in name for name in both) and any("q_proj" in name for name in both)
    assert sum(loop.progress.rows_per_task.values()) == STEPS * 12


def test_the_prefix_is_off_while_lora_trains_before_it():
    losses = []

    def first_loss(words):
        model, method, setup = attached(tiny_causal, words)
        loop = loop_for(model, method, setup, on_step=lambda step, rows, tasks: losses.append(rows.clone()))
        method.fit(model, loop)
        return losses[0]

    before = first_loss(f"peml[{SMALL},rank=4,dropout=0.0,order=lora_then_prefix]")
    losses.clear()
    assert torch.equal(before, first_loss("lora[rank=4,dropout=0.0]"))


def test_a_frozen_part_has_no_dropout():
    model, _, setup = attached(tiny_causal, "lora[rank=4,dropout=0.5]")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1
    batch = batch_for(setup)
    model.train()
    assert not torch.equal(row_losses(model, batch, Routing()), row_losses(model, batch, Routing()))
    model.requires_grad_(False)
    assert torch.equal(row_losses(model, batch, Routing()), row_losses(model, batch, Routing()))


@pytest.mark.parametrize("build_model", BUILDERS)
def test_a_prefix_per_task_serves_each_row_its_own(build_model):
    words = f"prefixnas[{SMALL},per_task=true]"
    model, method, setup, _ = trained(build_model, words)
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    encoders = model.mtlbench_prefix.source.encoders()
    assert len(encoders) == 3 and {encoder.size for encoder in encoders} == {1}
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)
    object.__setattr__(batch, "tasks", batch.tasks.roll(2))
    assert (label_logits(model, batch, setup.routing) - logits).abs().max() > 1e-5


@pytest.mark.parametrize("build_model", BUILDERS)
@pytest.mark.parametrize("words", [f"peml[{SMALL},rank=4]", "preembedd[prefix_length=4]+mtl_lora[rank=4]"])
def test_plain_peft_gives_the_logits_of_the_exported_model(build_model, words, tmp_path):
    model, method, setup, _ = trained(build_model, words)
    rows = [row for row in toy_rows(tasks=3, rows=2) if row.task == 1]
    batch = batch_for(setup, rows)
    want = label_logits(model, batch, setup.routing)
    method.export(model, tmp_path, task=1 if method.task_routed else None)
    weights = words.partition("+")[2].partition("[")[0] or "lora"
    prefix = "prefixnas" if words.startswith("peml") else "preembedd"
    assert {path.name for path in tmp_path.iterdir()} == {"merged", weights, prefix}
    merged = type(build_model(0)).from_pretrained(tmp_path / "merged").eval()
    loaded = PeftModel.from_pretrained(merged, tmp_path / prefix).eval()
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "merged")
    with torch.no_grad():
        logits = loaded(**batch.inputs).logits.flatten(0, 1)[batch.label_index]
    assert (logits - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("ablation", ["repeat=true", "skip=true", "reduction=true", "without=tanh+0.5"])
def test_ablations_of_the_encoder_train_and_end_as_a_constant(ablation):
    model, method, setup, _ = trained(tiny_causal, f"prefixnas[{SMALL},{ablation}]")
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    encoder = model.mtlbench_prefix.source
    names = {name for layer in encoder.architecture() for name in layer}
    if ablation.startswith("without"):
        assert not any("tanh" in name or name.endswith("0.5") for name in names)
        assert len(encoder.operations) == 6
    if ablation == "repeat=true":
        assert len(encoder.layers) == 1 and encoder.depth == 2
    if ablation == "reduction=true":
        assert encoder.output.shape[1] == 16
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lora+mtl_lora", "both change the weights"),
        ("prefix+prefixnas", "both change the attention"),
        ("base+prefix", "base cannot be composed"),
        ("peml+lora", "peml cannot be composed"),
        ("prefix+lora+[order=x]", "order must be"),
        ("prefix+lora+[odrer=x]", "Did you mean 'order'"),
        ("prefix+lorra", "Did you mean 'lora'"),
        ("prefix+lora[rnk=1]", "Did you mean 'rank'"),
        ("prefix+", "Cannot read"),
    ],
)
def test_what_cannot_be_composed_is_refused_before_any_compute(words, message):
    with pytest.raises(RequestError, match=message):
        method_of(words)


def test_a_cell_of_a_composition_names_it_as_it_was_written():
    words = "prefixnas[prefix_length=4]+lora[rank=4]+[order=in_turn]"
    ((name, settings),) = split_methods(words)
    cell = Cell(method=name, settings=read_settings(name, settings), tasks=("a/b",), model="demo", protocol=Protocol())
    assert cell.variant == words
    assert Cell.from_json(cell.to_json()) == cell
