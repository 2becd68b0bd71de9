"""Our methods against their reference forms on whole models: the check that the benchmarks make before they time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mtlbench.planning.settings import build, read_settings, split_methods

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from backbones import BackboneShape, make_batch
from backbones import build as build_backbone
from forms import agreement, as_peft, forms_of, pour, reference_side
from sides import Precision, our_side, peft_side
from step_time import METHODS

SHAPES = {
    "llama": BackboneShape(64, 2, vocabulary=97, rows=9, length=7),
    "t5": BackboneShape(48, 2, vocabulary=97, architecture="seq2seq", rows=9, length=7, answer=3),
}
MORE = (
    "lora[dropout=0.1]",
    "rslora[dropout=0]",
    "multilora[modules=1,dropout=0]",
    "mtl_lora[lambda_format=diagonal]",
    "moelora[shared_gate=true,target=all]",
    "molora[gate=task]",
    "cpoly[specific=onehot]",
    "cpoly[mix=outputs]",
)
CPU = torch.device("cpu")


def method_of(words):
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


@pytest.fixture(scope="module", params=SHAPES)
def backbone(request):
    shape = SHAPES[request.param]
    return build_backbone(shape), make_batch(shape, device=CPU)


@pytest.mark.parametrize(
    ("words", "checkpointing"),
    [*((words, False) for words in [*METHODS, *MORE]), *((words, True) for words in METHODS)],
)
def test_loss_and_every_gradient_are_those_of_the_reference_form(backbone, words, checkpointing):
    base, batch = backbone
    precision = Precision(checkpointing=checkpointing)
    ours = our_side(base, batch, precision, method_of(words))
    forms = forms_of(ours.method)
    assert forms
    for form in forms:
        other = reference_side(ours, base, batch, precision, form)
        for all_logits in (False, True):
            assert agreement(ours, other, form.move, all_logits=all_logits).largest < 1e-5, form.title


def test_the_check_notices_other_parameters(backbone):
    base, batch = backbone
    ours = our_side(base, batch, Precision(), method_of(METHODS[0]))
    peft = peft_side(base, batch, Precision(), rank=16, dropout=0.0)
    assert agreement(ours, peft, as_peft, all_logits=True).largest > 1e-2
    pour(ours, peft)
    assert agreement(ours, peft, as_peft, all_logits=True).largest < 1e-5
