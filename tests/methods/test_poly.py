"""Poly on whole models: it is peft's, with noise and without; its router can be shared; bad settings are named."""

from __future__ import annotations

import pytest
import torch
from peft import PolyConfig, TaskType, get_peft_model

from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter
from mtlbench_methods.mhr import Mhr
from mtlbench_methods.poly import Poly

BUILDERS = [tiny_causal, tiny_seq2seq]


def attached(build, method, *, noise=0.3):
    model = build(0).double()
    setup = setup_for(model)
    method.attach(model, setup)
    model.double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    batch = collate(
        toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )
    return model, setup, batch


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("method", [Poly(rank=3, target="all"), Mhr(splits=4, target="all")], ids=lambda m: m.name)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_equal_peft(build, method, training):
    """In training on the same uniform draws: both draw them when a layer is called."""
    ours, setup, batch = attached(build, method)
    config = PolyConfig(
        task_type=TaskType.CAUSAL_LM if setup.architecture == "causal" else TaskType.SEQ_2_SEQ_LM,
        r=method.rank,
        n_tasks=3,
        n_skills=method.skills,
        n_splits=method.blocks,
        target_modules=[*setup.target_modules],
    )
    theirs = get_peft_model(build(0).double(), config).double()
    pairs = []
    for name, module in ours.named_modules():
        if isinstance(module, LowRankLinear):
            other = theirs.get_submodule(f"base_model.model.{name}")
            pairs += [
                (module.down, other.poly_lora_A["default"], lambda p: p.transpose(2, 3)),
                (module.up, other.poly_lora_B["default"], lambda p: p),
                (module.logits, other.poly_router["default"].module_logits, lambda p: p.flatten(1)),
            ]
    assert len(pairs) == 3 * len(setup.target_modules)
    with torch.no_grad():
        for mine, other, turn in pairs:
            other.copy_(turn(mine))
    cotangent = torch.randn(ours.config.vocab_size, generator=torch.Generator().manual_seed(2)).double()
    logits = []
    for model, given in ((ours, {}), (theirs, {"task_ids": batch.tasks})):
        model.train(training)
        torch.manual_seed(5)
        with setup.routing.of(batch.tasks):
            logits.append(model(**batch.inputs, **given).logits)
            (logits[-1].softmax(-1) @ cotangent).sum().backward()
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-9, atol=1e-9)
    for mine, other, turn in pairs:
        assert other.grad.abs().max() > 0
        assert (turn(mine.grad) - other.grad).abs().max() < 1e-9 * other.grad.abs().max()


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("method", [Poly(), Mhr()], ids=lambda m: m.name)
def test_draws_have_the_range_of_peft(build, method):
    ours, _, _ = attached(build, method, noise=0.0)
    for name, module in ours.named_modules():
        if isinstance(module, LowRankLinear):
            limit = (method.blocks / module.in_features) ** 0.5
            assert 0.9 * limit < module.down.abs().max() <= limit, name
            assert module.up.abs().max() == 0
            assert module.logits.abs().max() <= 1e-3
    wide, _, _ = attached(build, Poly(init_bound="mttl"), noise=0.0)
    limit = (1 / (3 * 32)) ** 0.5
    assert 0.9 * limit < next(m for m in wide.modules() if isinstance(m, LowRankLinear)).down.abs().max() <= limit


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("granularity", ["layerwise", "coarsegrained"])
def test_a_shared_router_is_one_parameter_that_is_saved_and_read_back(build, granularity, tmp_path):
    method = Poly(granularity=granularity)
    model, setup, batch = attached(build, method)
    routers = [p for name, p in model.named_parameters() if name.endswith("logits")]
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert len(routers) == len({id(m.logits) for m in layers})
    assert len(routers) == (1 if granularity == "coarsegrained" else 2 if build is tiny_causal else 6)
    attn = {id(m.logits) for name, m in model.named_modules() if isinstance(m, LowRankLinear) and "layers.0." in name}
    assert len(attn) == (1 if build is tiny_causal else 0)
    logits = label_logits(model, batch, setup.routing)
    save_adapter(model, tmp_path, {})
    again = build(0).double()
    method.attach(again, setup)
    load_adapter(again.double(), tmp_path)
    torch.testing.assert_close(label_logits(again, batch, setup.routing), logits)


def test_scaling_is_alpha_over_rank():
    outputs = []
    for alpha in (1.0, 4.0):
        model, setup, _ = attached(tiny_causal, Poly(alpha=alpha, rank=4))
        layer = model.model.layers[0].self_attn.o_proj
        x = torch.randn(1, 3, layer.in_features, generator=torch.Generator().manual_seed(0)).double()
        with setup.routing.of(torch.tensor([1])):
            outputs.append(layer(x) - layer.base(x))
    torch.testing.assert_close(outputs[1], 4 * outputs[0])
    assert outputs[0].abs().max() > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"skills": 0},
        {"alpha": 0.0},
        {"alpha": float("inf")},
        {"logit_dropout": 1.0},
        {"logits_lr": 0.0},
        {"init_bound": "kaiming"},
        {"granularity": "headwise"},
        {"target": "q proj"},
        {"straight_through": True},
        {"l2_norm": True},
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=name) as caught:
        Poly(**settings)
    assert str(value) in str(caught.value)
    assert "must be" in str(caught.value)


def test_options_that_exclude_one_another():
    Poly(straight_through=True, gumbel=False)
    Poly(l2_norm=True, gumbel=False)
    with pytest.raises(RequestError, match=r"gumbel=false"):
        Poly(straight_through=True)
    with pytest.raises(RequestError, match=r"shared_skill and average_correction"):
        Poly(l2_norm=True, gumbel=False, shared_skill=True, average_correction=True)


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(RequestError, match=r"'qproj'.*q_proj"):
        attached(tiny_causal, Poly(target="qproj"))
