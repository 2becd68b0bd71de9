"""Backbones: loaded frozen, copied without copying weights, refused with what to do."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mtlbench.backbones.backbone import fingerprint, load_backbone
from mtlbench.cells.guards import backbone_unchanged
from mtlbench.errors import RequestError
from mtlbench.nn.linears import projection_names
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench_methods.lora import Lora

CPU = torch.device("cpu")


def save(model, folder):
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


def load(name, dtype=torch.float32):
    return load_backbone(name, dtype=dtype, attention="sdpa", device=CPU)


@pytest.mark.parametrize(
    ("build", "architecture", "start", "linears"),
    [(tiny_causal, "causal", None, 14), (tiny_seq2seq, "seq2seq", 0, 2 * (4 + 3) + 2 * (8 + 3))],
)
def test_a_folder_loads_frozen(build, architecture, start, linears, tmp_path):
    backbone = load(save(build(0), tmp_path))
    assert (backbone.architecture, backbone.pad_id, backbone.decoder_start_id) == (architecture, 0, start)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.parameters == sum(p.numel() for p in build(0).parameters())
    assert backbone.fingerprint == fingerprint(build(0))
    assert len(projection_names(backbone.model)) == linears


@pytest.mark.parametrize("build", [tiny_causal, tiny_seq2seq])
def test_a_fresh_copy_shares_every_weight_and_keeps_ties(build, tmp_path):
    backbone = load(save(build(0, tie_word_embeddings=True), tmp_path))
    copy = backbone.fresh()
    mine = dict(backbone.model.named_parameters(remove_duplicate=False))
    for name, p in copy.named_parameters(remove_duplicate=False):
        assert p is not mine[name]
        assert p.data_ptr() == mine[name].data_ptr(), name
    assert copy.lm_head.weight is copy.get_input_embeddings().weight
    ids = {"input_ids": torch.tensor([[1, 3, 5]])}
    if backbone.architecture == "seq2seq":
        ids["decoder_input_ids"] = ids["input_ids"]
    assert torch.equal(copy(**ids).logits, backbone.model(**ids).logits)
    Lora().attach(copy, setup_for(copy))
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(name.endswith(".down") for name, _ in backbone.model.named_parameters())
    assert not any(name.endswith(".down") for name, _ in backbone.fresh().named_parameters())


def test_a_write_into_frozen_storage_is_noticed(tmp_path):
    backbone = load(save(tiny_causal(0), tmp_path))
    assert backbone_unchanged(backbone)
    next(backbone.fresh().parameters()).data[0, 0] += 1
    assert not backbone_unchanged(backbone)


def test_bf16_weights(tmp_path):
    backbone = load(save(tiny_causal(0), tmp_path), torch.bfloat16)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone_unchanged(backbone)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no model folder './nowhere'"),
        ("/no/such/place", "'/no/such/place'"),
        ("dmo", "Did you mean 'demo'"),
        ("demo_t5", "Did you mean 'demo-t5'"),
    ],
)
def test_a_missing_backbone_is_named(name, says):
    with pytest.raises(RequestError, match=says):
        load(name)


def test_an_unreachable_hub_says_what_to_use_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match=r"'nobody/nothing'.*local folder.*`demo`"):
        load("nobody/nothing")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"config\.json"):
        load(str(tmp_path))


def test_a_masked_language_model_is_refused(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(RequestError, match="BertForMaskedLM.*another head than a language model's"):
        load(save(BertForMaskedLM(config), tmp_path))


def test_a_broken_folder_is_named(tmp_path):
    folder = save(tiny_causal(0), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamma"}))
    with pytest.raises(RequestError, match="cannot be loaded"):
        load(folder)
