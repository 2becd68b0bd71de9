"""C-Poly: private skills next to common ones."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal
from mtlbench_methods.cpoly import CPoly

TASKS = 3


def layer_of(method, *, noise=0.5, copied=None):
    """One layer in double precision, its setup and an input ``[3, 5, in]``; parameters may be those of another."""
    model = tiny_causal(0)
    setup = setup_for(model, tasks=TASKS)
    method.attach(model, setup)
    layer = next(m for m in model.modules() if isinstance(m, LowRankLinear))
    layer.shared = None
    layer.double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if copied is not None and name in dict(copied.named_parameters()):
                p.copy_(copied.get_parameter(name))
            elif p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    x = torch.randn(TASKS, 5, layer.in_features, generator=draw, dtype=torch.float64)
    return layer, setup, x


def at_eye(layer, own=1):
    with torch.no_grad():
        layer.specific.copy_(torch.eye(TASKS).repeat_interleave(own, dim=1))


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("mix", ["params", "outputs"])
def test_it_is_the_equation(own, mix):
    layer, setup, x = layer_of(CPoly(mix=mix, specific_skills=own))
    tasks = torch.tensor([2, 0, 1])
    with setup.routing.of(tasks):
        got = layer.eval()(x) - layer.base(x)
    down, up = layer.down[0], layer.up[0]
    for row, task in enumerate(tasks.tolist()):
        use = torch.sigmoid(layer.logits[task, 0])
        weights = torch.cat([use / use.sum(), layer.specific[task]])
        assert len(weights) == len(down) == 3 + TASKS * own
        if mix == "params":
            want = x[row] @ sum(w * a for w, a in zip(weights, down, strict=True)).t()
            want = want @ sum(w * b for w, b in zip(weights, up, strict=True))
        else:
            want = sum(w * x[row] @ a.t() @ b for w, a, b in zip(weights, down, up, strict=True))
        torch.testing.assert_close(got[row], want / 2)


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize(("mix", "splits"), [("params", 1), ("params", 4), ("outputs", 1)])
def test_onehot_is_the_untrained_table(own, mix, splits):
    given = {"mix": mix, "specific_skills": own, "splits": splits}
    trained, setup, x = layer_of(CPoly(**given))
    at_eye(trained, own)
    fixed, other, _ = layer_of(CPoly(**given, specific="onehot"), copied=trained)
    assert "specific" not in dict(fixed.named_parameters())
    outputs, grads = [], []
    for layer, routing in ((trained, setup.routing), (fixed, other.routing)):
        layer.train()
        torch.manual_seed(3)
        with routing.of(torch.tensor([2, 2, 0])):
            outputs.append(layer(x))
        outputs[-1].square().sum().backward()
        grads.append([layer.down.grad, layer.up.grad, layer.logits.grad])
    torch.testing.assert_close(*outputs)
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_onehot_reads_no_skills_of_other_tasks():
    layer, setup, x = layer_of(CPoly(specific="onehot"))
    with torch.no_grad():
        layer.down[:, 3 + 1] = float("nan")
        layer.up[:, 3 + 1] = float("nan")
    with setup.routing.of(torch.tensor([2, 0, 2])):
        assert layer(x).isfinite().all()


def test_the_table_starts_at_the_tasks_own_skills_and_is_trained_whole():
    model = tiny_causal(0)
    setup = setup_for(model, tasks=TASKS)
    CPoly(specific_skills=2).attach(model, setup)
    layer = next(m for m in model.modules() if isinstance(m, LowRankLinear))
    assert layer.specific.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    with torch.no_grad():
        layer.up.normal_()
    layer.shared = None
    with setup.routing.of(torch.tensor([1])):
        layer(torch.randn(1, 4, layer.in_features)).square().sum().backward()
    assert layer.specific.grad[1].abs().min() > 0
    assert layer.specific.grad[[0, 2]].abs().max() == 0


def test_private_weights_see_no_noise():
    layer, setup, x = layer_of(CPoly(common=1))  # a mixture of one is one, whatever the noise
    with setup.routing.of(torch.tensor([2, 0, 1])):
        torch.testing.assert_close(layer.train()(x), layer.eval()(x))


def test_parameters_by_task_and_in_all():
    model = tiny_causal(0)
    setup = setup_for(model, tasks=7)
    CPoly(target="q_proj").attach(model, setup)
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    widths = sum(m.in_features + m.out_features for m in layers)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 2 * widths * (3 + 7) + len(layers) * (7 * 3 + 7 * 7)
    assert model.mtlbench_skills.notes()["active_parameters"] == 2 * widths * 4 + len(layers) * (3 + 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"common": 0},
        {"specific_skills": 0},
        {"rank": 0},
        {"splits": 0},
        {"mix": "logits"},
        {"specific": "eye"},
        {"alpha": -1.0},
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=name) as caught:
        CPoly(**settings)
    assert f"cpoly[{name}={value}]" in str(caught.value)


def test_outputs_have_no_blocks():
    with pytest.raises(RequestError, match=r"splits=2.*mix=outputs"):
        CPoly(splits=2, mix="outputs")


def test_splits_that_do_not_divide_a_width_are_refused_when_attaching():
    model = tiny_causal(0)
    with pytest.raises(RequestError, match=r"splits=5 .*q_proj \(32 in, 32 out\)"):
        CPoly(splits=5).attach(model, setup_for(model))
