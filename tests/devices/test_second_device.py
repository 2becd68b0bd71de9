"""Every method trains, finishes and scores on a device that is not the processor, and makes no host wait for it.

No accelerator is at hand where these run: the device has shapes, dtypes and rules of devices, and no numbers. What it
cannot show: missing kernels, results, several devices, real allocators.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from second_device import NAME, register, second_device

from mtlbench.api.cell import Protocol
from mtlbench.backbones.transfer import in_one, parts_of, to_device
from mtlbench.conformance.kit import methods_named
from mtlbench.errors import RequestError
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.evaluation.packed_rows import ScoreRequest
from mtlbench.nn.low_rank.layer import known_factors
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.nn.varlen import torch_kernel
from mtlbench.plugins import offers
from mtlbench.testing import PAD, setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import Collator
from mtlbench.training.gradients import Gradients
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import carve

STEPS = 5
ROWS = carve(toy_rows(tasks=3, rows=12), held_out=0.2, seed=0)
"""Real numbers, made outside of the fake device."""
BFLOAT16 = "bfloat16"

FEW = [
    *((text, "causal", BFLOAT16) for text in ("mtl_lora", "peml", "ta_lora", "attempt")),
    *((text, "seq2seq", "float32") for text in ("lora", "prefix", "houlsby")),
]
"""A method of each kind; ``make devices`` runs all, on both backbones and in both dtypes."""
SETTINGS = {"c3a": "c3a[block_size=8]", "peft": "peft[type=VERA,r=4]"}
"""Settings that fit the tiny backbones, of methods whose defaults do not."""
VARIANTS = ("moelora[masks=per_expert]", "prefix[reparam=mlp]", "prefixnas[per_task=true]", "preembedd+lora")
ALL = [
    (text, architecture, dtype)
    for text in (*(SETTINGS.get(name, name) for name in offers("methods") if name != "base"), *VARIANTS)
    for architecture in ("causal", "seq2seq")
    for dtype in ("float32", BFLOAT16)
]

PEFT = ("boft/", "fourierft/", "peft/")
NOT_HERE = {
    "adamss": "clusters weights with numpy when it is attached, so it needs numbers",
    "frod": "finds the numbers of a weight that are not zero, so it needs them",
    "unilora": "counts its indices when it is attached, so it needs them",
    "boft": "peft keeps a permutation on the processor and copies it in each forward",
}
"""Tuners of peft that this device cannot show."""
MAY_WAIT = {
    "training/loop.py": "the loss is read every ten steps and at the end of a run",
    "prefixes/nas.py": "a search reads its logits when it leaves operations out",
    "blocks/branching.py": "tasks are grouped once, on the host",
    "soft_prompts/start.py": "the spread of the embeddings sets the rate of a stage",
    "soft_prompts/sources.py": "what targets took from their sources is noted between stages",
}
"""Lines of these files make the host wait in some steps, and for good; in most steps nothing may."""

register()


def tiny(architecture, dtype, layers=1):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(NAME):
            return (
                tiny_causal(num_hidden_layers=layers) if architecture == "causal" else tiny_seq2seq(num_layers=layers)
            )
    finally:
        torch.set_default_dtype(before)


def attach(text, model, **options):
    (method,) = methods_named(text).values()
    setup = setup_for(model, tasks=3, **options)
    reason = method.refuse(setup)
    if reason is not None:
        pytest.skip(reason)
    try:
        method.attach(model, setup)
    except RequestError as error:
        pytest.skip(str(error))
    return method, setup


def devices_of(model):
    """Of all tensors that modules hold, as parameters, buffers or plain attributes."""
    plain = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and v.dim()]
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers(), *plain)}


def requests(architecture):
    """With a prefix that is read once for many, with trees of two answers, and single ones."""
    shared, made = tuple(3 + n % 90 for n in range(90)), []
    for n in range(16):
        task, alone = n % 3, n >= 12
        start = (1, 70 + n) if alone else (1, *shared)
        context = (*start, *((10 + n // 2 * 7 + j) % 50 for j in range(6)))
        answer = (30 + n % 2, 2)
        if architecture == "causal":
            made.append(ScoreRequest(n, (task, ()), (*context, *answer[:-1]), answer))
        else:
            made.append(ScoreRequest(n, (task, context), (0, *answer[:-1]), answer))
    return made


def runs(text, architecture, dtype):
    method_dtype = getattr(torch, dtype)
    steps: list[tuple[Counter[str], int]] = []
    with second_device() as watch:
        model = tiny(architecture, method_dtype)
        method, setup = attach(text, model, total_steps=STEPS)
        assert devices_of(model) == {NAME}, "after attaching"

        def on_step(step, losses, tasks):
            assert losses.device.type == tasks.device.type == NAME
            steps.append((Counter(watch.waits), watch.transfers))
            watch.clear()

        job = TrainingJob(
            model=model,
            method=method,
            splits=ROWS,
            protocol=Protocol(steps=STEPS, batch_size=6, evals_per_run=0, max_length=64),
            tasks=3,
            routing=setup.routing,
            collator=Collator(setup.architecture, PAD, PAD, torch.device(NAME)),
            seed=0,
            autocast=None if dtype == "float32" else method_dtype,
        )
        loop = Loop(job, on_step=on_step)
        method.fit(model, loop)
        assert loop.progress.row_layout == "end to end"
        model.eval()
        if method.name != "adalora":  # which triplets are left is a shape that depends on numbers
            method.finish(model)
        assert devices_of(model) == {NAME}, "after finishing"
        scored, waits, transfers = scores(model, setup, architecture, watch)
    return steps, scored, waits, transfers


def scores(model, setup, architecture, watch):
    """Batches scored, where the host waited, and transfers."""
    lm = RoutedLM(
        model,
        SimpleNamespace(pad_token_id=PAD),
        architecture=architecture,
        routing=setup.routing,
        task_ids={"toy/0": 0, "toy/1": 1, "toy/2": 2},
        max_length=128,
        token_budget=512,
    )
    with torch.no_grad(), known_factors(model, tasks=3):
        rows = lm._packed_rows(requests(architecture))
        watch.clear()
        batches = 0
        for _, found in lm._scored(rows):
            assert found.device.type == NAME
            batches += 1
    assert batches > 1
    return batches, dict(watch.waits), watch.transfers


def check(text, architecture, dtype):
    if text.partition("[")[0] in NOT_HERE:
        pytest.skip(NOT_HERE[text.partition("[")[0]])
    steps, batches, waits, transfers = runs(text, architecture, dtype)
    steps = steps[1:]  # the first one tries whether rows may lie end to end, and reads the outcome
    assert min(sent for _, sent in steps) == 1, "one transfer for the rows of a step"
    for line in sorted({line for step, _ in steps for line in step if not of_peft(line)}):
        place = line.partition(": ")[2].rpartition(":")[0]
        assert place in MAY_WAIT, f"the host waits in a step: {line}"
        count = sum(line in step for step, _ in steps)
        assert count < len(steps), f"the host waits in {count} of {len(steps)} steps: {line}"
    waits = {line: count for line, count in waits.items() if not of_peft(line)}
    assert not waits, f"the host waits in a scored batch: {waits}"
    assert batches <= transfers <= 2 * batches, "one transfer for a batch, and one for the prefixes of several"


def of_peft(line):
    """Whether a tuner of peft waits: boft and fourierft do, once for each adapted linear."""
    return line.partition(": ")[2].startswith(PEFT)


@pytest.mark.parametrize(("text", "architecture", "dtype"), FEW)
def test_a_method_of_each_kind_runs_on_another_device_and_makes_no_host_wait(text, architecture, dtype):
    check(text, architecture, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "architecture", "dtype"), ALL)
def test_every_method_runs_on_another_device_and_makes_no_host_wait(text, architecture, dtype):
    check(text, architecture, dtype)


def test_what_makes_a_host_wait_is_found():
    """Were it not, the tests above could not fail."""
    with second_device() as watch:
        there = torch.zeros(3, device=NAME)
        for wait in (
            lambda: there.sum().item(),
            lambda: bool(there.any()),
            lambda: there.cpu(),
            lambda: torch.tensor([1.0, 2.0], device=NAME),
            lambda: torch.ones(2).to(NAME),
            lambda: there.copy_(torch.ones(3)),
            lambda: torch.equal(there, there),
        ):
            watch.clear()
            wait()
            assert len(watch.waits) == 1
        watch.clear()
        moved = to_device({"a": torch.ones(2), "b": (torch.zeros(3, dtype=torch.bool),)}, torch.device(NAME))
        assert (sum(watch.waits.values()), watch.transfers) == (0, 1)
        assert moved["a"].device.type == NAME and moved["b"][0].dtype == torch.bool and moved["b"][0].shape == (3,)
        with pytest.raises(Exception, match="device"):
            there + torch.ones(3)


def test_tensors_that_go_in_one_transfer_come_out_as_they_were():
    tensors = [
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.arange(6, dtype=torch.int32).view(2, 3).t(),
        torch.tensor(2.5),
        torch.zeros(0, dtype=torch.int64),
        torch.randn(3, 1).to(torch.bfloat16),
    ]
    for tensor, same in zip(tensors, parts_of(in_one(tensors), tensors), strict=True):
        assert torch.equal(tensor, same) and tensor.dtype == same.dtype


KERNELS = {
    "lora": (288, 690),
    "mtl_lora": (311, 845),
    "prefix": (168, 275),
    "moelora": (328, 890),
    "lora[dropout=0]": (252, 585),
    "ta_lora": (214, 320),
    "prompt_tuning": (156, 365),
    "houlsby": (243, 535),
    "full": (194, 445),
    "bitfit": (224, 535),
}
"""At most so many kernels does one layer more launch in forward and backward of a packed step in bfloat16: of a Llama,
and of the encoder and decoder of a T5 together. Small backbones are bound by launches, and get slower with them."""


def launched(text, architecture, layers, kernel=None):
    """Kernels of forward and backward of a step."""
    with second_device() as watch:
        model = tiny(architecture, torch.bfloat16, layers)
        method, setup = attach(text, model)
        model.train()
        gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=torch.bfloat16)
        collator = Collator(setup.architecture, PAD, PAD, torch.device(NAME))
        prompt = soft_prompt_of(model)
        slots = 0 if prompt is None else prompt.source.length
        batch = collator.packed(ROWS.train[:8], by_task=method.task_routed, slots=slots)
        if kernel is not None:
            batch = replace(batch, packing=replace(batch.packing, kernel=kernel, reads=set()))
        watch.clear()
        gradients.step([batch])
        assert not watch.waits
        assert batch.packing.reads == ({"buckets"} if kernel is None else {"bounds"})
        return sum(watch.kernels.values())


def check_kernels(text, architecture):
    one, two = launched(text, architecture, 1), launched(text, architecture, 2)
    most = KERNELS[text][("causal", "seq2seq").index(architecture)]
    assert 0.9 * most < two - one <= most, "fewer than that is good news: lower the bound"


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("text", list(KERNELS)[:2])
def test_a_layer_launches_no_more_kernels_than_it_did(text, architecture):
    check_kernels(text, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("text", list(KERNELS)[2:])
def test_a_layer_of_other_methods_launches_no_more_kernels_than_it_did(text, architecture):
    check_kernels(text, architecture)


@pytest.mark.parametrize("text", ["prefix", "ta_lora"])
def test_torchs_kernel_takes_rows_by_their_bounds_and_saves_launches(text):
    """Its rules of shapes and its backward run; its arithmetic needs a card."""
    assert launched(text, "causal", 2, kernel=torch_kernel) < launched(text, "causal", 2)
