"""Rows laid end to end have the losses and gradients of padded ones, for every method on both kinds of backbone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mtlbench.conformance.toys import PAD, setup_for, tiny_causal, tiny_seq2seq
from mtlbench.errors import RequestError
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.plugins import offers
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.cuts import end_to_end
from mtlbench.training.forms import form_of
from mtlbench.training.gradients import Gradients, checkpointing, clear

FITS = {"c3a": "c3a[block_size=8]", "peft": "peft[type=VERA,r=4]"}
"""Settings that fit the tiny backbones, of methods whose defaults do not."""
ROUNDING = {"fourierft": 1e-4}
"""Relative difference of gradients where it is larger: this one goes through a Fourier transform in float32."""
METHODS = [
    *(FITS.get(name, name) for name in offers("methods") if name != "base"),
    "preembedd+lora",
    "prefixnas+mtl_lora",
    "mtl_lora[target=all]",
    "molora[balance=0.5]",
    "molora[balance=0.5,gate=task]",
    "prompt_tuning+loramoe[balance=0.5]",
]


def rows(seed=0, count=9):
    draw = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        return tuple(
            torch.randint(10, 90, (int(torch.randint(low, high, (), generator=draw)),), generator=draw).tolist()
        )

    made = [TokenRow(int(torch.randint(0, 3, (), generator=draw)), tokens(2, 14), tokens(1, 4)) for _ in range(count)]
    return sorted(made, key=lambda row: row.length)


def attached(words, make):
    ((name, settings),) = split_methods(words)
    method, model = build(name, read_settings(name, settings)), make()
    setup = setup_for(model, tasks=3)
    reason = method.refuse(setup)
    if reason is None:
        try:
            method.attach(model, setup)
        except RequestError as error:
            reason = str(error)
    if reason is not None:
        pytest.skip(reason)
    draw = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=draw) * 0.05)
    model.eval()
    return method, model, setup


def gradient(gradients, batches):
    params = [p for p in gradients.model.parameters() if p.requires_grad]
    clear(params)
    loss, losses, _ = gradients.step(batches)
    return loss, losses, torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in params])


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("words", METHODS)
def test_packed_and_cut_steps_are_padded_ones(words, make):
    method, model, setup = attached(words, make)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator(setup.architecture, PAD, PAD, torch.device("cpu"))
    form = form_of(gradients, collator, rows(1), longest=64)
    assert form.padded_because is None, form.padded_because
    found = [gradient(gradients, [collator.padded(rows())]), gradient(gradients, [form.collate(rows())])]
    tasks = torch.tensor([row.task for row in rows()])
    if gradients.is_linear(tasks):
        cuts = end_to_end([row.length for row in rows()], most=40)
        assert len(cuts) > 1
        found.append(gradient(gradients, [form.collate(rows()[cut]) for cut in cuts]))
    (loss, losses, grads), *others = found
    for other_loss, other_losses, other_grads in others:
        torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
        assert (other_grads - grads).norm() <= ROUNDING.get(words, 2e-5) * grads.norm()


class ReadsRows(torch.nn.Module):
    """Adds to each token the mean of its row: what no packed batch allows."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x + x.mean(1, keepdim=True))


def form_for(model, method=None, *, given=None, longest=64):
    method = method or build("lora", {})
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    return form_of(
        gradients,
        Collator(setup.architecture, PAD, PAD, torch.device("cpu")),
        given or rows(1),
        longest=longest,
    )


def test_a_backbone_that_mixes_tokens_outside_attention_gets_padded_rows_and_says_why():
    model = tiny_causal()
    model.model.layers[1].mlp = ReadsRows(model.model.layers[1].mlp)
    assert "differ by" in form_for(model).padded_because


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"_attn_implementation": "eager"}, "attention 'eager'"),
        ({"sliding_window": 32}, "sliding window of 32 tokens and rows may have 64"),
        ({"attention_chunk_size": 16}, "chunks of 16 tokens and rows may have 64"),
    ],
)
def test_what_cannot_be_packed_is_padded(changes, why):
    model = tiny_causal()
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert why in form_for(model).padded_because


def test_a_window_that_no_layer_has_keeps_no_row_from_being_packed():
    model = tiny_causal()
    model.config.sliding_window, model.config.layer_types = 8, ["full_attention"] * len(model.model.layers)
    assert form_for(model).padded_because is None


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("words", ["mtl_lora", "prefix", "ta_lora", "prompt_tuning", "attempt"])
def test_padded_rows_with_masks_that_nothing_reads_have_the_losses_of_padded_ones(words, make):
    method, model, setup = attached(words, make)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator(setup.architecture, PAD, PAD, torch.device("cpu"))
    _, losses, grads = gradient(gradients, [collator.padded(rows())])
    _, other_losses, other_grads = gradient(gradients, [collator.padded(rows(), unread=True)])
    torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
    assert (other_grads - grads).norm() <= 2e-5 * grads.norm()


def test_a_method_that_reads_rows_gets_padded_ones_with_masks_that_nothing_reads():
    class Reads(type(build("lora", {}))):
        reads_rows = True

    form = form_for(tiny_causal(), Reads())
    assert "read whole rows" in form.padded_because and form.collate(rows()).unmasked
    windowed = tiny_causal()
    windowed.config.sliding_window = 32
    form = form_for(windowed, Reads())
    assert not form.collate(rows()).unmasked, "a window needs its mask"


def test_rows_that_see_one_another_show_where_no_loss_does():
    """An untrained head makes the same of every state, so the losses of a leaking backbone are those of a tight one."""
    model = tiny_causal()
    model.lm_head.weight.data.mul_(1e-6)
    assert form_for(model).padded_because is None
    leaking = tiny_causal()
    leaking.lm_head.weight.data.mul_(1e-6)
    leaking.model.layers[1].mlp = ReadsRows(leaking.model.layers[1].mlp)
    assert "hidden states" in form_for(leaking).padded_because


def test_the_trial_leaves_the_model_the_random_state_and_the_attention_as_they_were():
    model = tiny_causal()
    method, setup = build("mtl_lora", {}), setup_for(model, tasks=3)
    method.attach(model, setup)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    gradients = Gradients(model=model.train(), method=method, routing=setup.routing, autocast=None)
    form = form_of(gradients, Collator("causal", PAD, None, torch.device("cpu")), rows(1), longest=64)
    assert form.padded_because is None and model.training
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    gradients.step([form.collate(rows())])
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("words", ["mtl_lora", "preembedd+lora", "prompt_tuning", "molora[balance=0.5]"])
def test_layers_computed_again_in_the_backward_see_the_packed_rows(words, make):
    method, model, setup = attached(words, make)
    collator = Collator(setup.architecture, PAD, PAD, torch.device("cpu"))
    gradients = Gradients(model=model.train(), method=method, routing=setup.routing, autocast=None)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    form = form_of(gradients, collator, rows(1), longest=64)
    _, losses, grads = gradient(gradients, [form.collate(rows())])
    with checkpointing(model):
        _, again, recomputed = gradient(gradients, [form.collate(rows())])
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(recomputed, grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("words", ["lora", "mtl_lora"])
@pytest.mark.parametrize("context", range(1, 12))
def test_streams_of_encoder_and_decoder_are_never_taken_for_one_another(words, context):
    """Whatever their sizes: attention and layers tell the two by how many tokens and chunks they hold."""
    method, model, setup = attached(words, tiny_seq2seq)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator("seq2seq", PAD, PAD, torch.device("cpu"))
    given = [TokenRow(task, tuple(range(10, 10 + context)), tuple(range(40, 44 + task))) for task in range(2)]
    with torch.no_grad():
        padded = gradients.forward(collator.padded(given))
        packed = gradients.forward(collator.packed(given, by_task=method.task_routed))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


def test_an_unrouted_batch_answers_no_question_for_tasks():
    setup = setup_for(tiny_causal(), tasks=3)
    batch = Collator("causal", PAD, None, torch.device("cpu")).packed(rows(), by_task=False)
    with setup.routing.of(batch.tasks, packing=batch.packing), pytest.raises(RuntimeError, match="of one task"):
        setup.routing.ids(1)


def test_tokens_of_one_row_never_see_anothers():
    """Whatever stands in the other rows, the loss and the gradients of a row are the same, bit for bit in its tokens."""
    method, model, setup = attached("mtl_lora", tiny_causal)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator("causal", PAD, None, torch.device("cpu"))
    given = rows()
    other = [TokenRow(row.task, tuple(90 - t for t in row.context), row.target) for row in given[:-1]]
    first = gradients.forward(collator.packed(given, by_task=True))
    second = gradients.forward(collator.packed([*other, given[-1]], by_task=True))
    torch.testing.assert_close(first[-1], second[-1], rtol=1e-6, atol=1e-6)
    assert (first[:-1] - second[:-1]).abs().max() > 1e-3


@pytest.mark.parametrize("most", [1, 7, 20, 33, 1000])
def test_cuts_cover_the_rows_in_order_and_hold_at_most_so_many_tokens(most):
    lengths = sorted([3, 9, 4, 4, 12, 7, 7, 1, 15])
    cuts = end_to_end(lengths, most=most)
    assert [length for cut in cuts for length in lengths[cut]] == lengths
    assert all(sum(lengths[cut]) <= most or cut.stop - cut.start == 1 for cut in cuts)
    assert len(end_to_end(lengths, most=1000)) == 1


def test_dropout_is_drawn_for_every_token_alike():
    """With dropout, packed and padded gradients have the same mean over draws: each within the other's spread."""
    method, model, setup = attached("lora[dropout=0.2]", tiny_causal)
    gradients = Gradients(model=model.train(), method=method, routing=setup.routing, autocast=None)
    collator = Collator("causal", PAD, None, torch.device("cpu"))
    given, draws = rows(count=4), 200
    sums = []
    for make in (collator.padded, partial(collator.packed, by_task=False)):
        torch.manual_seed(0)
        sums.append(torch.stack([gradient(gradients, [make(given)])[2] for _ in range(draws)]))
    means, error = [s.mean(0) for s in sums], (sum(s.var(0) for s in sums) / draws).sqrt()
    z = (means[0] - means[1])[error > 0] / error[error > 0]
    assert z.square().mean() < 1.3 and (sums[0].var(0).mean() / sums[1].var(0).mean()).sub(1).abs() < 0.1
