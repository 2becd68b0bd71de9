"""What a quantised backbone does not allow is refused by the plan, in one sentence, without torch or any kernel."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from helpers.tiny_backbones import tiny_backbone

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.executor import DevicesPerCell
from mtlbench.backbones.quantization import stored_as
from mtlbench.errors import RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request, check_devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_backbone(made, architecture="causal")
    return made


def says(folder: Path, tmp_path: Path, quantization: dict[str, object]) -> str:
    """A model folder whose config.json has this ``quantization_config``."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return str(tmp_path)


def plan(model: str, methods: str = "lora", **protocol: object) -> None:
    make_plan(Request(methods=methods, tasks="glue/rte", model=model, data="demo", protocol=protocol))


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: find("json" if name in ("bitsandbytes", "torchao") else name, *a)
    )


@pytest.mark.parametrize(
    ("quantization", "label"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "awq", "w_bit": 4}, "awq, 4 bits"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            "torchao, Int4WeightOnlyConfig",
        ),
        ({"bits": 3}, "an unnamed method, 3 bits"),
    ],
)
def test_forms_that_no_method_trains_on_are_told_apart(
    quantization: dict[str, object], label: str, folder: Path, tmp_path: Path, everything_installed: None
):
    with pytest.raises(RequestError, match=rf"are quantised \({label}\), a form .* --quantize nf4"):
        plan(says(folder, tmp_path, quantization))


def test_forms_of_bitsandbytes_and_torchao_have_their_names():
    def kind(**said: object) -> str:
        stored = stored_as({"quantization_config": said})
        assert stored is not None and stored.trainable
        return f"{stored.method} {stored.kind}"

    assert kind(load_in_4bit=True, bnb_4bit_quant_type="nf4") == "bitsandbytes nf4"
    assert kind(quant_method="bitsandbytes", load_in_8bit=True) == "bitsandbytes int8"
    assert kind(quant_method="bitsandbytes_4bit", load_in_4bit=True) == "bitsandbytes fp4"
    float8 = {"default": {"_type": "Float8WeightOnlyConfig", "_data": {}}}
    assert kind(quant_method="torchao", quant_type=float8) == "torchao fp8"
    assert stored_as({}) is None and stored_as({"quantization_config": None}) is None


def test_what_is_quantised_already_is_not_quantised_again(folder: Path, tmp_path: Path, everything_installed: None):
    model = says(folder, tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    plan(model)
    with pytest.raises(RequestError, match=r"quantised already \(bitsandbytes, nf4\), and --quantize int8"):
        plan(model, quantize="int8")
    with pytest.raises(RequestError, match="full trains or reads the weights"):
        plan(model, "base,lora,full")


@pytest.mark.parametrize(("kind", "package"), [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("fp8", "torchao")])
def test_a_missing_package_is_one_sentence_of_the_plan(
    kind: str, package: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    with pytest.raises(RequestError, match=rf"--quantize {kind} needs {package}.*pip install 'mtlbench\[quantized\]'"):
        plan(str(folder), quantize=kind)
    stored = {"load_in_4bit": True} if package == "bitsandbytes" else {"quant_type": {"_type": "Int8WeightOnlyConfig"}}
    with pytest.raises(RequestError, match=f"The backbone .* needs {package}"):
        plan(says(folder, tmp_path, {"quant_method": package, **stored}))


def test_methods_that_train_or_read_frozen_weights_are_named(everything_installed: None):
    with pytest.raises(RequestError, match=r"full, dora train or read .* quantised \(nf4\)"):
        plan("demo", "lora,full,dora,mtl_lora", quantize="nf4")
    with pytest.raises(RequestError, match=r"prefix\+dora trains or reads"):
        plan("demo", "prefix+dora", quantize="nf4")
    with pytest.raises(RequestError, match="lokr trains or reads"):
        plan("demo", "lokr,ia3", quantize="fp8")
    with pytest.raises(RequestError, match="peft trains or reads"):
        plan("demo", "peft[type=LORA,init_lora_weights=pissa]", quantize="nf4")
    plan("demo", "base,lora,mtl_lora,peml,prefix,ta_lora,peft,houlsby,ia3", quantize="nf4")


def test_gguf_and_shards_are_in_full_precision(tmp_path: Path, everything_installed: None):
    from helpers.tiny_gguf import write_gguf

    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    with pytest.raises(RequestError, match="is a GGUF file, which is loaded in full precision"):
        plan(str(file), quantize="nf4")
    cell = Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(quantize="nf4"))
    with pytest.raises(RequestError, match="--shard cuts weights in full precision"):
        check_devices(DevicesPerCell(usual=2, shard=True), [cell])


def test_a_backbone_without_linears_for_it_is_refused(folder: Path, tmp_path: Path, everything_installed: None):
    model = says(folder, tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(RequestError, match="fp8 finds no linears in the blocks of .* that torchao can quantise"):
        plan(model, quantize="fp8")


def test_rows_of_other_precision_are_of_another_protocol_and_earlier_keys_stay():
    assert "quantize" not in Protocol().identity()
    assert len({Protocol(quantize=kind).hash() for kind in ("none", "nf4", "fp4", "int8", "fp8")}) == 5
    old = Cell(method="lora", tasks=("a",), model="demo", protocol=Protocol()).to_json()
    del old["protocol"]["quantize"]
    assert Cell.from_json(old).protocol.quantize == "none"
