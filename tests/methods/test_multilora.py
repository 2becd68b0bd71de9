"""MultiLoRA on whole models: a wide LoRA that starts as the backbone, merges and exports."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from peft import PeftModel

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.training.loss import row_losses
from mtlbench_methods.multilora import MultiLora


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("finished", [False, True])
def test_peft_reads_it_as_a_lora_of_all_modules(build, finished, tmp_path):
    method = MultiLora(rank=2, modules=3, alpha=5.0)
    model, setup = attached(build, method)
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    if finished:
        method.finish(model)
        assert not any(isinstance(m, LowRankLinear) for m in model.modules())
        torch.testing.assert_close(label_logits(model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)
    method.export(model, tmp_path)
    loaded = PeftModel.from_pretrained(build(0), tmp_path)
    assert loaded.peft_config["default"].r == 6
    torch.testing.assert_close(label_logits(loaded.base_model.model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)


def test_the_first_step_moves_the_scales_alone():
    model, setup = attached(BUILDERS[0], MultiLora(rank=2), noise=0.0)
    row_losses(model, batch_for(setup), setup.routing).mean().backward()
    grads = {n: p.grad.abs().max() for n, p in model.named_parameters() if p.requires_grad}
    assert all((grad > 0) == name.endswith("scale") for name, grad in grads.items())


def test_scales_do_not_decay():
    model, _ = attached(BUILDERS[0], MultiLora(rank=2))
    others, scales = MultiLora().param_groups(model, 0.5)
    assert scales["weight_decay"] == 0.0
    assert "weight_decay" not in others
    assert 2 * len(scales["params"]) == len(others["params"])


@pytest.mark.parametrize("settings", [{"modules": 0}, {"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"{name}={value}"):
        MultiLora(**settings)
