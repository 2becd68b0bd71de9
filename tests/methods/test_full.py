"""Full fine-tuning: every weight trains as a float32 copy, tied weights stay tied, the backbone stays as it was."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone, fingerprint
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError
from mtlbench.planning.settings import build as build_method
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, saved_names, trainable_names
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods.full import Full

BUILDERS = [tiny_causal, tiny_seq2seq]


def tied_causal(seed=0):
    return tiny_causal(seed, tie_word_embeddings=True)


def backbone_of(build, dtype=torch.float32):
    model = build(0).to(dtype)
    architecture = "seq2seq" if model.config.is_encoder_decoder else "causal"
    count = sum(p.numel() for p in model.parameters())
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    return Backbone("tiny", model, tokenizer, architecture, count, fingerprint(model))


def attached(backbone, **settings):
    model = backbone.fresh()
    setup = setup_for(model)
    Full(**settings).attach(model, setup)
    return model, setup


def collated(setup):
    device = torch.device("cpu")
    rows = toy_rows(tasks=3, rows=2)
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=device)


def train(backbone, model, setup, *, method=None, autocast=None, **changes):
    loop = toy_loop(
        model,
        method or Full(learning_rate=1e-2),
        setup,
        Protocol(**{"steps": 6, "batch_size": 12, **changes}),
        autocast=autocast,
    )
    loop.run()
    return loop


@pytest.mark.parametrize("build", [*BUILDERS, tied_causal])
def test_every_weight_trains_and_the_backbone_is_untouched(build):
    backbone = backbone_of(build)
    model, setup = attached(backbone)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == backbone.parameters
    batch = collated(setup)
    assert torch.equal(label_logits(model, batch, setup.routing), label_logits(build(0), batch, Routing()))
    train(backbone, model, setup)
    assert {name for name, p in model.named_parameters() if torch.equal(p, start[name])} == set()
    assert fingerprint(backbone.model) == backbone.fingerprint
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("build", [tied_causal, tiny_seq2seq])
def test_tied_weights_stay_tied_through_training(build):
    backbone = backbone_of(build)
    model, setup = attached(backbone)
    shared = model.get_input_embeddings().weight
    ends = [model.lm_head.weight] if build is tied_causal else [model.encoder.embed_tokens.weight]
    assert all(end is shared for end in ends)
    train(backbone, model, setup)
    Full().finish(model)
    assert all(end.data_ptr() == model.get_input_embeddings().weight.data_ptr() for end in ends)


@pytest.mark.parametrize("build", [*BUILDERS, tied_causal])
def test_embeddings_and_head_can_stay_as_they_are(build):
    backbone = backbone_of(build)
    model, setup = attached(backbone, embeddings=False)
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    assert frozen == ends
    before = model.get_input_embeddings().weight.clone()
    train(backbone, model, setup)
    assert torch.equal(model.get_input_embeddings().weight, before)
    norms = [name for name, p in model.named_parameters() if "norm" in name.lower() and p.requires_grad]
    assert len(norms) == sum("norm" in name.lower() for name, _ in model.named_parameters()) > 0


@pytest.mark.parametrize("build", [*BUILDERS, tied_causal])
@pytest.mark.parametrize("embeddings", [True, False])
def test_the_saved_model_reads_back(build, embeddings, tmp_path):
    backbone = backbone_of(build)
    model, setup = attached(backbone, embeddings=embeddings)
    train(backbone, model, setup)
    save_adapter(model, tmp_path, {"kind": "full"})
    again, _ = attached(backbone, embeddings=embeddings)
    assert set(saved_names(tmp_path)) == set(trainable_names(again)) == set(trainable_names(model))
    assert load_adapter(again, tmp_path) == {"kind": "full"}
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    assert torch.equal(label_logits(again, batch, setup.routing), logits)
    assert (label_logits(backbone.fresh(), batch, setup.routing) - logits).abs().max() > 0.1


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("embeddings", [True, False])
def test_a_bf16_backbone_trains_in_float32_and_is_evaluated_in_bf16(build, embeddings):
    backbone = backbone_of(build, torch.bfloat16)
    model, setup = attached(backbone, embeddings=embeddings)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    method = Full(learning_rate=1e-5)  # steps that bf16 could not hold
    loop = train(backbone, model, setup, method=method, autocast=torch.bfloat16, evals_per_run=1)
    moved = [(p.detach() - start[name]).abs().max() for name, p in model.named_parameters() if name in start]
    assert all(0 < float(move) < 1e-4 for move in moved)
    assert len(loop.progress.stop_losses) == 1
    batch = collated(setup)
    wide = label_logits(model, batch, setup.routing)
    method.finish(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(label_logits(model, batch, setup.routing), wide, rtol=0.1, atol=0.1 * float(wide.std()))
    assert fingerprint(backbone.model) == backbone.fingerprint


@pytest.mark.parametrize("build", BUILDERS)
def test_gradient_checkpointing_gives_the_same_gradients(build):
    backbone = backbone_of(build)
    model, setup = attached(backbone)
    other = copy.deepcopy(model)
    batch = collated(setup)
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        with context:
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("build", BUILDERS)
def test_beams_give_what_one_row_alone_gives(build):
    backbone = backbone_of(build)
    model, setup = attached(backbone)
    train(backbone, model, setup)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16]])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1])
    for row in range(2):
        assert torch.equal(together[row], generate([row])[0])


def test_only_matrices_decay():
    model, _ = attached(backbone_of(tiny_causal))
    matrices, others = Full().param_groups(model, 0.5)
    assert "weight_decay" not in matrices
    assert others["weight_decay"] == 0.0
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in others["params"]} == {1}
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_it_has_a_rate_of_its_own_and_can_take_the_protocols():
    assert build_method("full", {}).learning_rate == 1e-4 < Protocol().learning_rate
    assert build_method("full", {"learning_rate": None}).learning_rate is None


def test_it_is_no_peft_checkpoint(tmp_path):
    model, _ = attached(backbone_of(tiny_causal))
    with pytest.raises(PluginError, match="'full'"):
        Full().export(model, tmp_path)
