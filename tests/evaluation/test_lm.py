"""RoutedLM gives the scores of lm-eval's stock HFLM, in request order, with each row routed to its task."""

from __future__ import annotations

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_backbones import TEXTS, tiny_backbone
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import logits_at
from mtlbench.errors import DataError
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.nn.prefixes.inject import attach_prefix
from mtlbench.tokens.encode import encode_pairs

CHOICES = {
    "suite/yes": [" yes", " no"],
    "suite/grade": [f" {i / 5:.1f}" for i in range(26)],
    "suite/long": [" True", " Neither of the two", " the rain did stop and the concert continued", " the rain did"],
}


@pytest.fixture(scope="module", params=["causal", "seq2seq"])
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = tiny_backbone(folder, architecture=request.param)
    return request.param, model, tokenizer, folder


def requests_of(kinds=tuple(CHOICES), documents=12, seed=0):
    rng = random.Random(seed)
    words = " ".join(TEXTS[:2]).split()
    made = []
    for doc in range(documents):
        task = rng.choice(kinds)
        text = " ".join(rng.choices(words, k=rng.randint(1, 30))) + rng.choice(["\nAnswer:", " ", "é 🙂:"])
        for i, choice in enumerate(CHOICES[task]):
            made.append(Instance("loglikelihood", {}, (text, choice), i, metadata=(task, doc, 1)))
    rng.shuffle(made)
    return made


def routed(backbone, *, routing=None, model=None, max_length=200, token_budget=512):
    architecture, own, tokenizer, _ = backbone
    return RoutedLM(
        model or own,
        tokenizer,
        architecture=architecture,
        routing=routing or Routing(),
        task_ids={name: i for i, name in enumerate(CHOICES)},
        max_length=max_length,
        token_budget=token_budget,
    )


def stock(backbone, **more):
    architecture, _, _, folder = backbone
    return HFLM(pretrained=str(folder), backend=architecture, device="cpu", dtype="float32", batch_size=4, **more)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b


def test_scores_equal_hflm(backbone):
    requests = requests_of()
    theirs = stock(backbone).loglikelihood(requests, disable_tqdm=True)
    assert_same(routed(backbone).loglikelihood(requests), theirs)


def test_greedy_flags_equal_hflm_over_every_one_token_answer(backbone):
    tokenizer = backbone[2]
    words = [text for text in tokenizer.batch_decode([[i] for i in range(3, len(tokenizer))]) if "\ufffd" not in text]
    texts = dict.fromkeys(request.args[0].rstrip() for request in requests_of(documents=6))
    pairs = [(text, word) for text in texts for word in words]
    encoded = encode_pairs(tokenizer, pairs, architecture=backbone[0])
    hflm = stock(backbone)
    requests = [
        Instance("loglikelihood", {}, pair, i, metadata=("suite/yes", i, 1))
        for i, (pair, (_, answer)) in enumerate(zip(pairs, encoded, strict=True))
        if answer and tuple(hflm._encode_pair(*pair)[1]) == answer  # lm-eval drops what a token over the join begins
    ]
    assert len(requests) > 0.9 * len(pairs)
    theirs = hflm.loglikelihood(requests, disable_tqdm=True)
    assert {greedy for _, greedy in theirs} == {True, False}
    assert_same(routed(backbone).loglikelihood(requests), theirs)


def test_empty_context_equals_hflm(backbone):
    requests = [
        Instance("loglikelihood", {}, ("", text), 0, metadata=("suite/yes", 0, 1))
        for text in (" yes", "the rain", "no")
    ]
    assert_same(routed(backbone).loglikelihood(requests), stock(backbone).loglikelihood(requests, disable_tqdm=True))


def test_prompts_too_long_are_cut_on_the_left_as_hflm_cuts(backbone):
    requests = requests_of(documents=8, seed=1)
    limit = 24
    # HFLM counts the tokens a causal model reads, which is one less than the row.
    theirs = stock(backbone, max_length=limit - 1 if backbone[0] == "causal" else limit)
    assert_same(
        routed(backbone, max_length=limit).loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    )


def test_an_answer_longer_than_the_limit_is_an_error(backbone):
    with pytest.raises(DataError, match="max-length 3"):
        routed(backbone, max_length=3).loglikelihood(requests_of(kinds=("suite/long",), documents=1))


def test_scores_do_not_depend_on_the_batch_size(backbone):
    requests = requests_of()
    one = routed(backbone, token_budget=1).loglikelihood(requests)
    assert_same(routed(backbone, token_budget=100_000).loglikelihood(requests), one)


def test_no_requests_give_no_scores(backbone):
    assert routed(backbone).loglikelihood([]) == []


def read_by(lm, requests):
    """What the backbone was given: the packed_rows of every batch."""
    seen = []
    scores = lm._reader.scores
    assert lm._packable

    def watch(batch, *prefixes, plain=False):
        seen.extend(batch)
        return scores(batch, *prefixes, plain=plain)

    lm._reader.scores = watch
    lm.loglikelihood(requests)
    return seen


def test_a_document_is_one_row_in_which_nothing_stands_twice(backbone):
    """Its yes and no are read off one place; 26 grades need the digit before the point and what follows it."""
    for kind in CHOICES:
        requests = requests_of(kinds=(kind,), documents=1)
        encoded = encode_pairs(backbone[2], [r.args for r in requests], architecture=backbone[0])
        inputs = [(*c, *a[:-1]) if backbone[0] == "causal" else (0, *a[:-1]) for c, a in encoded]
        beginnings = {tokens[:n] for tokens in inputs for n in range(1, len(tokens) + 1)}
        (packed,) = read_by(routed(backbone), requests)
        assert len(packed.tokens) == len(beginnings)
        assert len(packed.readouts) == len(requests)


class TaskNoise(nn.Module):
    """A linear whose output gets an offset that depends on the task, and remembers the routing of each call."""

    def __init__(self, inner: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.inner, self.routing = inner, routing
        self.offsets = nn.Parameter(3 * torch.randn(len(CHOICES), inner.out_features, generator=torch.manual_seed(5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = self.routing.ids(x.shape[0])
        return self.inner(x) + self.offsets[ids].view(-1, *[1] * (x.dim() - 2), self.inner.out_features)


@pytest.mark.parametrize("where", ["encoder_or_layer", "decoder"])
def test_each_row_is_routed_to_its_task(tmp_path, backbone, where):
    """Mixed tasks in one batch give what each task gives alone with its offset built into a plain bias."""
    architecture = backbone[0]
    requests = requests_of(documents=10, seed=3)
    routing = Routing()
    model, _ = tiny_backbone(tmp_path, architecture=architecture)
    names = {
        ("causal", "encoder_or_layer"): "model.layers.0.mlp",
        ("causal", "decoder"): "model.layers.1.mlp",
        ("seq2seq", "encoder_or_layer"): "encoder.block.0.layer.1.DenseReluDense",
        ("seq2seq", "decoder"): "decoder.block.1.layer.2.DenseReluDense",
    }
    parent = model.get_submodule(names[architecture, where])
    attribute = "down_proj" if architecture == "causal" else "wi"
    inner = getattr(parent, attribute)
    noise = TaskNoise(inner, routing)
    setattr(parent, attribute, noise)
    mixed = routed(backbone, routing=routing, model=model).loglikelihood(requests)
    plain = routed(backbone).loglikelihood(requests)
    assert max(abs(a - b) for (a, _), (b, _) in zip(mixed, plain, strict=True)) > 1e-2

    for task, name in enumerate(CHOICES):
        biased = nn.Linear(inner.in_features, inner.out_features)
        biased.weight.data, biased.bias.data = inner.weight.data, noise.offsets.data[task]
        setattr(parent, attribute, biased)
        mine = [i for i, request in enumerate(requests) if request.task_name == name]
        alone = routed(backbone, model=model).loglikelihood([requests[i] for i in mine])
        assert_same([mixed[i] for i in mine], alone)


def test_generation_equals_hflm(backbone):
    settings = {"until": ["on", "."], "max_gen_toks": 12, "do_sample": False}
    texts = list(dict.fromkeys(r.args[0].rstrip() for r in requests_of(documents=6, seed=4)))
    requests = [
        Instance("generate_until", {}, (text, dict(settings)), 0, metadata=("suite/yes", i, 1))
        for i, text in enumerate(texts)
    ]
    # One request at a time: HFLM gives generate no attention mask, so its padded batches attend to padding.
    hflm = stock(backbone)
    theirs = [hflm.generate_until([request], disable_tqdm=True)[0] for request in requests]
    for budget in (1, 10_000):
        assert routed(backbone, token_budget=budget).generate_until(requests) == theirs


def test_generation_is_routed(tmp_path, backbone):
    architecture, _, _, _ = backbone
    routing = Routing()
    model, _ = tiny_backbone(tmp_path, architecture=architecture)
    parent = model.model.layers[1].mlp if architecture == "causal" else model.decoder.block[1].layer[2].DenseReluDense
    attribute = "down_proj" if architecture == "causal" else "wi"
    setattr(parent, attribute, TaskNoise(getattr(parent, attribute), routing))
    settings = {"until": [], "max_gen_toks": 8}
    requests = [
        Instance("generate_until", {}, ("the rain", settings), 0, metadata=(name, 0, 1))
        for name in CHOICES
        for _ in range(2)
    ]
    together = routed(backbone, routing=routing, model=model).generate_until(requests)
    alone = [routed(backbone, routing=routing, model=model).generate_until([request])[0] for request in requests]
    assert together == alone
    assert len(set(together)) == len(CHOICES)


def test_sampling_is_refused(backbone):
    request = Instance(
        "generate_until", {}, ("a", {"do_sample": True, "temperature": 1.0}), 0, metadata=("suite/yes", 0, 1)
    )
    with pytest.raises(DataError, match="greedy"):
        routed(backbone).generate_until([request])


def test_logits_at_positions_are_those_of_the_full_logits(backbone):
    architecture, model, _, _ = backbone
    ids = torch.randint(3, 300, (3, 7), generator=torch.manual_seed(1))
    inputs = {"input_ids": ids} if architecture == "causal" else {"input_ids": ids, "decoder_input_ids": ids.flip(0)}
    index = torch.tensor([20, 0, 8])
    full = model(**inputs).logits
    with logits_at(model, index):
        picked = model(**inputs).logits
    assert picked.shape == (3, full.shape[-1])
    torch.testing.assert_close(picked, full.flatten(0, 1)[index])
    torch.testing.assert_close(model(**inputs).logits, full)


def test_logits_at_positions_pass_gradients_only_through_them(backbone):
    architecture, model, _, _ = backbone
    ids = torch.randint(3, 300, (2, 5), generator=torch.manual_seed(2))
    embeds = torch.randn(2, 5, 32, generator=torch.manual_seed(3), requires_grad=True)
    decoder = (
        {"inputs_embeds": embeds} if architecture == "causal" else {"input_ids": ids, "decoder_inputs_embeds": embeds}
    )
    with logits_at(model, torch.tensor([7])):
        model(**decoder).logits.logsumexp(-1).sum().backward()
    assert embeds.grad[0].abs().sum() == 0
    assert embeds.grad[1, :3].abs().sum() > 0
    assert embeds.grad[1, 3:].abs().sum() == 0
    model.zero_grad()


def test_a_prefix_reaches_every_row_alike(tmp_path, backbone):
    """Key/value prefixes change the scores, and neither sharing rows nor padding changes what they do."""
    architecture = backbone[0]
    model, _ = tiny_backbone(tmp_path, architecture=architecture)
    slots = attach_prefix(model)
    shape = (slots.shape.layers, 2, slots.shape.kv_heads, 3, slots.shape.head_dim)
    slots.set(torch.randn(shape, generator=torch.manual_seed(8)))
    requests = requests_of(documents=6, seed=5)
    one = [routed(backbone, model=model).loglikelihood([request])[0] for request in requests]
    assert_same(routed(backbone, model=model).loglikelihood(requests), one)
    plain = routed(backbone).loglikelihood(requests)
    assert max(abs(a - b) for (a, _), (b, _) in zip(one, plain, strict=True)) > 1e-2
    texts = ["the rain did stop", "yes", "Question: did the concert go on until 10?"]
    asked = [
        Instance("generate_until", {}, (t, {"until": [], "max_gen_toks": 6}), 0, metadata=("suite/yes", 0, 1))
        for t in texts
    ]
    alone = [routed(backbone, model=model).generate_until([request])[0] for request in asked]
    assert routed(backbone, model=model, token_budget=9999).generate_until(asked) == alone
