"""Settings, initial values, learning rates and export of the soft-prompt methods."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from attached import BUILDERS, attached
from peft import PeftModel

from mtlbench.api.cell import Cell, Protocol
from mtlbench.errors import PluginError, RequestError
from mtlbench.forecasting.memory import count_parameters
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq


def method_of(words):
    ((name, settings),) = split_methods(words)
    return build(name, read_settings(name, settings))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prompt_tuning[prompt_length=0]", "prompt_length must be"),
        ("prompt_tuning[init=words]", "init must be one of vocab, random, text"),
        ("prompt_tuning[init=text]", "give text with init=text"),
        ("prompt_tuning[text=hello]", "give text with init=text"),
        ("prompt_tuning[learning_rate=0]", "learning_rate must be none or above 0"),
        ("mpt[rank=0]", "rank must be"),
        ("mpt[distill=-1]", "distill must be"),
        ("mpt[teacher_share=1]", "teacher_share must be"),
        ("attempt[temperature=0]", "temperature must be none or above 0"),
        ("attempt[source_share=0]", "source_share must be"),
        ("spot[transfer=copy]", "transfer must be one of best, weighted, mixture, task"),
        ("spot[transfer=task]", "from_task must be given with transfer=task"),
        ("spot[similarity=cosine]", "similarity must be tokens or mean"),
        ("prompt_tuning+mpt", "both change the input"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(words, message):
    with pytest.raises(RequestError, match=message):
        method_of(words)


@pytest.mark.parametrize(
    ("words", "changes", "reason"),
    [
        ("spot[transfer=task,from_task=toy/9]", {}, "from_task=toy/9 is no source"),
        ("spot", {"tasks": 1}, "one task has no other"),
        ("spot", {"total_steps": 1}, "need a step each"),
        ("attempt", {"total_steps": 1}, "need a step each"),
        ("mpt", {"total_steps": 1}, "need a step each"),
    ],
)
def test_what_a_cell_cannot_do_is_refused_with_the_reason(words, changes, reason):
    assert reason in method_of(words).refuse(setup_for(tiny_causal(0), **changes))


def prompts(words, build_model=tiny_causal, **changes):
    model = build_model(0)
    setup = dataclasses.replace(setup_for(model, tasks=3), **changes)
    method_of(words).attach(model, setup)
    return soft_prompt_of(model).source.prompts.detach(), model.get_input_embeddings().weight


@pytest.mark.parametrize("build_model", BUILDERS)
def test_initial_values(build_model):
    found, embeddings = prompts("prompt_tuning[prompt_length=20,per_task=true]", build_model)
    ids = torch.cdist(found.flatten(0, 1), embeddings).argmin(1).view(3, 20)
    torch.testing.assert_close(found, embeddings[ids])
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert ids[0].tolist() != ids[1].tolist()
    again, _ = prompts("prompt_tuning[prompt_length=120]", build_model)
    assert again.shape == (1, 120, 32)
    drawn, _ = prompts("prompt_tuning[init=random]", build_model)
    assert float(drawn.std() / embeddings.std()) == pytest.approx(1, abs=0.1)


def test_a_text_is_repeated_to_the_length():
    words = "prompt_tuning[prompt_length=5,init=text,text=is it true]"
    found, embeddings = prompts(words, encode=lambda text: tuple(10 + len(word) for word in text.split()))
    torch.testing.assert_close(found[0], embeddings[[12, 12, 14, 12, 12]])
    for encode, reason in ((None, "there is no tokenizer"), (lambda text: (), "it has no tokens")):
        with pytest.raises(RequestError, match=reason):
            prompts(words, encode=encode)


@pytest.mark.parametrize("build_model", BUILDERS)
def test_learning_rates(build_model):
    model = build_model(0)
    setup = setup_for(model, tasks=3)
    rate = 0.3 * min(1.0, float(model.get_input_embeddings().weight.square().mean().sqrt()))
    method = method_of("mpt[prompt_length=5]")
    method.attach(model, setup)
    prompt, factors = method.param_groups(model, 0.5)
    assert prompt["lr"] == pytest.approx(rate) and factors["lr"] == pytest.approx(rate * 4 / 3)
    assert method_of("mpt[prompt_length=5,learning_rate=0.5]").param_groups(model, 0.5)[0]["lr"] == 0.5


@pytest.mark.parametrize("build_model", BUILDERS)
def test_attempt_has_the_papers_parameters_and_temperature(build_model):
    model = build_model(0)
    setup = setup_for(model, tasks=6)
    method_of("attempt").attach(model, dataclasses.replace(setup, sources=4))
    source = soft_prompt_of(model).source
    trained = {name: p.numel() for name, p in source.named_parameters()}
    assert trained.pop("sources") == 4 * 100 * 32
    assert sum(trained.values()) == 2 * 100 * 32 + 2 * 100 * 32 + 2 * 32
    assert source.temperature == pytest.approx(math.e * 32)


def test_parameters_are_counted_without_weights():
    cell = Cell(method="mpt", tasks=("a/x", "a/y"), model="demo", protocol=Protocol())
    counts = count_parameters(cell)
    shared, factors, teachers = 100 * 128, 2 * (100 + 128), 2 * 100 * 128
    assert counts.training == shared + factors + teachers and counts.dropped == teachers


@pytest.mark.parametrize("build_model", BUILDERS)
@pytest.mark.parametrize("words", ["prompt_tuning", "prompt_tuning[per_task=true]", "mpt[distill=0]", "spot"])
def test_plain_peft_gives_the_same_logits(tmp_path, build_model, words):
    method = dataclasses.replace(method_of(words), prompt_length=6)
    model, setup = attached(build_model, method)
    task = 1 if method.task_routed else None
    if task is not None:
        with pytest.raises(PluginError, match="choose the task"):
            method.export(model, tmp_path / "none")
    method.export(model, tmp_path / "peft", task=task)
    loaded = PeftModel.from_pretrained(build_model(0), tmp_path / "peft").eval()
    ids = torch.arange(10, 26).view(2, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    labels = torch.tensor([[30, 31], [32, 33]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if build_model is tiny_seq2seq:
        with torch.no_grad(), setup.routing.of(torch.tensor([1, 1])):
            ours = model(**inputs, labels=labels).logits
            theirs = loaded(**inputs, labels=labels).logits
    else:
        with torch.no_grad(), setup.routing.of(torch.tensor([1, 1])):
            ours = model(**inputs).logits
            theirs = loaded(**inputs).logits[:, 6:]
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_prompt_by_row_has_no_peft_form(tmp_path):
    method = method_of("attempt[prompt_length=4]")
    model, _ = attached(tiny_causal, method)
    with pytest.raises(PluginError, match="a prompt for each row"):
        method.export(model, tmp_path, task=0)
