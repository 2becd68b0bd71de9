"""A soft prompt is what stock transformers computes for its vectors before the row's embeddings, however it is read."""

from __future__ import annotations

import pytest
import torch
from method_scoring import TASKS, one_by_one, requests_of, scorer
from tiny_backbones import tiny_backbone

from mtlbench.errors import RequestError
from mtlbench.nn.soft_prompts.prompt import PromptSource, attach_soft_prompt
from mtlbench.nn.soft_prompts.sources import TablePrompts
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench.training.tail import narrow_tail

SLOTS = 5
ROWS = [(11, 12, 13, 14, 15, 16, 17), (21, 22, 23), (31, 32, 33, 34, 35)]
DECODER = torch.tensor([[0, 41, 42], [0, 43, 44], [0, 45, 46]])
PER_TASK = ["prompt_tuning", "mpt", "spot", "attempt"]


def prompted(start=tiny_causal, *, tasks=3, dtype=torch.float64, **changes):
    """A model with a random prompt for each task, its setup, and the prompts."""
    model = start(0, **changes).to(dtype)
    setup = setup_for(model, tasks=tasks)
    prompts = torch.randn(tasks, SLOTS, 32, generator=torch.manual_seed(3)).to(dtype)
    attach_soft_prompt(model, TablePrompts(prompts.clone(), setup.routing).to(dtype), setup.routing, longest=64)
    return model.eval(), setup, prompts


def padded(side):
    width = max(map(len, ROWS))
    ids, mask = torch.zeros(len(ROWS), width, dtype=torch.int64), torch.zeros(len(ROWS), width, dtype=torch.int64)
    for i, row in enumerate(ROWS):
        at = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return ids, mask


def by_hand(start, prompt, row, decoder, **changes):
    """Logits of one row of a stock model, the prompt concatenated to its embeddings."""
    model = start(0, **changes).to(prompt.dtype)
    embeddings = model.get_input_embeddings()(torch.tensor([row]))
    inputs = torch.cat([prompt[None], embeddings], dim=1)
    if start is tiny_seq2seq:
        return model(inputs_embeds=inputs, decoder_input_ids=decoder[None]).logits[0]
    return model(inputs_embeds=inputs).logits[0, SLOTS:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("start", [tiny_causal, tiny_seq2seq])
def test_logits_and_gradients_are_those_of_embeddings_joined_by_hand(start, side, attention):
    # transformers' eager attention takes its softmax in float32, and padding in float64 is nan there
    dtype, tolerance = (torch.float32, 1e-4) if attention == "eager" else (torch.float64, 1e-9)
    model, setup, prompts = prompted(start, dtype=dtype, attn_implementation=attention)
    ids, mask = padded(side)
    inputs = (
        {"decoder_input_ids": DECODER} if start is tiny_seq2seq else {"position_ids": (mask.cumsum(1) - 1).clamp(0)}
    )
    tasks = [2, 0, 2]
    with setup.routing.of(torch.tensor(tasks)):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
    found = [logits[i] if start is tiny_seq2seq else logits[i][mask[i].bool()] for i in range(len(ROWS))]
    leaf = prompts.clone().requires_grad_()
    wanted = [
        by_hand(start, leaf[task], row, decoder, attn_implementation=attention)
        for task, row, decoder in zip(tasks, ROWS, DECODER, strict=True)
    ]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    sum(part.square().mean() for part in found).backward()
    sum(part.square().mean() for part in wanted).backward()
    grad = model.mtlbench_soft_prompt.source.prompts.grad
    torch.testing.assert_close(grad, leaf.grad, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("start", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generation_of_a_left_padded_batch_is_that_of_each_row_joined_by_hand(start, beams):
    model, setup, prompts = prompted(start)
    ids, mask = padded("left")
    tasks = torch.tensor([2, 0, 1])
    given = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    with setup.routing.of(tasks):
        made = model.generate(input_ids=ids, attention_mask=mask, **given)[:, 1 if start is tiny_seq2seq else 7 :]
    stock = start(0).double()
    for i, row in enumerate(ROWS):
        inputs = torch.cat([prompts[tasks[i]][None], stock.get_input_embeddings()(torch.tensor([row]))], dim=1)
        alone = stock.generate(inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2]), **given)
        assert torch.equal(made[i], alone[0, 1 if start is tiny_seq2seq else 0 :])


@pytest.mark.parametrize("replay", [False, True])
def test_the_last_layer_at_answers_only_gives_the_same_gradients(replay):
    rows = [
        TokenRow(0, tuple(range(3, 12)), (20,)),
        TokenRow(1, tuple(range(5, 17)), (21, 22)),
        TokenRow(2, (30,), (24,)),
    ]
    model, setup, _ = prompted()
    batch = collate(rows, architecture="causal", pad_id=0, decoder_start_id=0, device=torch.device("cpu"))
    assert batch.answers is not None
    found = []
    for places in (None, batch.answers):
        model.zero_grad()
        model.train()
        with setup.routing.of(batch.tasks), narrow_tail(model, places, setup.routing):
            if replay and places is not None:
                with checkpointing(model):
                    losses = row_losses(model, batch, setup.routing)
                    losses.square().sum().backward()
            else:
                losses = row_losses(model, batch, setup.routing)
                losses.square().sum().backward()
        found.append((losses.detach(), model.mtlbench_soft_prompt.source.prompts.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", [tiny_causal, tiny_seq2seq])
def test_sixteen_bits_keep_the_prompt_and_its_gradient_in_float32(start):
    model = start(0).to(torch.bfloat16)
    setup = setup_for(model, tasks=3)
    source = TablePrompts(torch.randn(3, SLOTS, 32, generator=torch.manual_seed(3)), setup.routing)
    attach_soft_prompt(model, source, setup.routing, longest=64)
    ids, mask = padded("right")
    inputs = {"decoder_input_ids": DECODER} if start is tiny_seq2seq else {}
    with setup.routing.of(torch.tensor([2, 0, 2])):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert source.prompts.grad.dtype == torch.float32
    assert source.prompts.grad[[0, 2]].abs().sum(2).all() and not source.prompts.grad[1].any()


def attached(name, model):
    """The method with a prompt for each task, moved by noise and finished, and the routing."""
    settings = {"prompt_length": 7, **({"per_task": True} if name == "prompt_tuning" else {})}
    method, setup = build(name, {**settings, **({"temperature": 3.0} if name == "attempt" else {})}), None
    setup = setup_for(model, tasks=len(TASKS))
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=draw))
    method.finish(model.eval())
    return model.eval(), setup.routing


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("name", PER_TASK)
def test_sharing_changes_no_score(tmp_path, name, architecture):
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    requests = requests_of()
    plain = scorer(model, tokenizer).loglikelihood(requests)
    model, routing = attached(name, model)
    lm = scorer(model, tokenizer, routing=routing)
    assert lm._packable == (name != "attempt" or architecture == "seq2seq")
    ours = lm.loglikelihood(requests)
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours, plain, strict=True)) > 1e-2
    for (one, _), (other, _) in zip(ours, one_by_one(model, tokenizer, requests, routing=routing), strict=True):
        assert one == pytest.approx(other, rel=3e-6, abs=1e-4)


def test_a_prompt_that_reads_the_text_scores_what_it_was_asked_and_not_its_answer(tmp_path):
    model, _ = tiny_backbone(tmp_path, architecture="causal")
    model, routing = attached("attempt", model)
    seen = []
    model.mtlbench_soft_prompt.source.register_forward_hook(lambda _, args, out: seen.append(out.detach()))
    rows = [TokenRow(0, (5, 6, 7), (8, 9, 3)), TokenRow(0, (5, 6, 7), (30, 31, 32, 33)), TokenRow(0, (5, 6), (7, 8))]
    batch = collate(rows, architecture="causal", pad_id=0, decoder_start_id=None, device=torch.device("cpu"))
    with torch.no_grad():
        row_losses(model, batch, routing)
        with routing.of(torch.zeros(2, dtype=torch.int64)):
            model(input_ids=torch.tensor([[5, 6, 7], [0, 5, 6]]), attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
    trained, generated = seen
    torch.testing.assert_close(trained[0], trained[1])
    torch.testing.assert_close(trained[[0, 2]], generated)
    assert (trained[0] - trained[2]).abs().max() > 1e-3


class Long(PromptSource):
    """A source of so many slots."""

    def __init__(self, length):
        super().__init__()
        self.length = length


def test_what_does_not_fit_is_refused():
    model = tiny_causal(0)
    routing = setup_for(model).routing
    with pytest.raises(RequestError, match="500 slots and rows of 64 tokens do not fit the 512 positions"):
        attach_soft_prompt(model, Long(500), routing, longest=64)
    attach_soft_prompt(model, Long(448), routing, longest=64)
    with pytest.raises(RequestError, match="already has a soft prompt"):
        attach_soft_prompt(model, Long(4), routing, longest=64)
