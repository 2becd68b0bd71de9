"""A backbone that is not what it says is refused with names and numbers: by its files at the plan, else when loaded."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import tiny_model, tiny_tokenizer

from mtlbench.api.cell import Cell, Protocol
from mtlbench.backbones.backbone import load_backbone
from mtlbench.backbones.checkpoint import position_limit, tokens_beyond
from mtlbench.backbones.loaded import check_rows_fit
from mtlbench.backbones.names import check_model, model_notes, weights_digest
from mtlbench.cells.failure import failure_of
from mtlbench.errors import RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    tokenizer = tiny_tokenizer(architecture="causal")
    tiny_model(architecture="causal", vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load(folder: Path) -> Any:
    return load_backbone(str(folder), dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))


def configure(folder: Path, **fields: Any) -> None:
    body = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(body | fields))


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def cut_in_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])


def index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    files = {f"layer.{at}": f"model-0000{at}-of-00002.safetensors" for at in (1, 2)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))


def lists_more(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"model.norm.bias": "part.safetensors"}}))


def strange_dtype(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data.replace(b'"F32"', b'"F33"', 1))


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../blobs/gone")


def of_another_form(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "tf_model.h5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"model.safetensors' is truncated: it has [\d,]+ bytes, and its header describes [\d,]+"),
        (cut_in_header, "truncated in its header"),
        (index, r"names 2 files of weights, and 1 of them are missing: model-00002-of-00002.safetensors"),
        (lists_more, "lists 1 weights that its files do not hold: model.norm.bias"),
        (strange_dtype, "in the dtype 'F33'"),
        (pointer, "is a pointer of Git LFS"),
        (link_to_nothing, "is a link to a file that is not there"),
        (of_another_form, r"has no weights: none of .* Weights of another form are there: tf_model.h5"),
        (without_tokenizer, "has no tokenizer: it needs tokenizer.json"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "holds no JSON object"),
        (lambda folder: configure(folder, model_type=None), "names no model_type"),
        (lambda folder: configure(folder, dtype="float17"), "has dtype 'float17', no dtype of torch"),
        (lambda folder: configure(folder, vocab_size=999), r"vocab_size is 999, and the embedding .* has \d+ rows"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "also holds a peft adapter"),
    ],
)
def test_files_that_cannot_be_a_backbone_are_refused_at_the_plan(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    check_model(str(folder))
    spoil(folder)
    with pytest.raises(RequestError, match=message):
        make_plan(Request(methods="base", tasks="glue/rte", model=str(folder), data="demo"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "fields", "message"),
    [
        (
            lambda w: {f"base_model.{k}": v for k, v in w.items()},
            {},
            r"lacks \d+ of the \d+ weights of LlamaForCausalLM",
        ),
        (lambda w: {k: v for k, v in w.items() if k != DOWN}, {}, rf"lacks 1 of the \d+ weights .*: {DOWN}"),
        (lambda w: w, {"num_hidden_layers": 1}, r"holds \d+ weights of layers that its config.json does not count"),
        (lambda w: w, {"num_hidden_layers": 3}, r"lacks \d+ of the .* model.layers.2"),
        (lambda w: w, {"intermediate_size": 64}, r"have another shape. The first: model.layers.\d.mlp"),
        (lambda w: {**w, f"{DOWN}.lora_A": w[DOWN].clone()}, {}, "of an adapter that was not merged"),
        (lambda w: {**w, DOWN: w[DOWN] * float("nan")}, {}, f"1 weights of .* hold NaN or infinite values: {DOWN}"),
        (lambda w: w, {"hidden_act": "nope"}, "cannot be loaded: KeyError: 'nope'"),
        (lambda w: w, {"pad_token_id": 9999}, "cannot be loaded: .*adding_idx"),
    ],
)
def test_weights_that_do_not_fit_are_named_when_loaded(
    folder: Path, edit: Callable[[Any], Any], fields: dict[str, Any], message: str
) -> None:
    change(folder, edit)
    configure(folder, **fields)
    with pytest.raises(RequestError, match=message):
        load(folder)


def test_tokens_without_a_row_are_told_at_the_plan_and_refused_when_loaded(folder: Path) -> None:
    tokenizer = tiny_tokenizer(architecture="causal")
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert model_notes(str(folder)) == () and load(folder).name == str(folder)
    tokenizer.add_tokens(["sleeps"])
    tokenizer.save_pretrained(folder)
    message = rf"1 tokens beyond the embedding .* ids up to {rows + 1}, and the embedding has {rows} rows.*'sleeps'"
    (note,) = model_notes(str(folder))
    with pytest.raises(RequestError, match=message):
        load(folder)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(note)
    assert tokens_beyond("m", {0: "a", 9: "b"}, rows=10) is None


def test_rows_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = tiny_tokenizer(architecture="causal")
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def plan(length: int) -> object:
        words = {"methods": "base", "tasks": "glue/rte", "model": str(tmp_path), "data": "demo"}
        return make_plan(Request(**words, protocol={"max_length": length}))

    assert plan(64)
    with pytest.raises(RequestError, match=r"--max-length 65 is more than the 64 positions"):
        plan(65)
    check_rows_fit("opt", model, max_length=64)
    with pytest.raises(RequestError, match="64 positions"):
        check_rows_fit("opt", model, max_length=65)
    assert model(input_ids=torch.full((1, 64), 5)).logits.shape[1] == 64
    with pytest.raises(IndexError) as raised:
        model(input_ids=torch.full((1, 65), 5))
    failure = failure_of(raised.value, Cell(method="lora", tasks=("glue/rte",), model="opt", protocol=Protocol()))
    assert failure.kind == "user" and "Lower --max-length" in failure.message


def test_only_tables_of_positions_have_an_end() -> None:
    assert (
        position_limit({"model_type": "llama", "max_position_embeddings": 32}, {"a.embed_tokens.weight": (9, 2)})
        is None
    )
    assert position_limit({"model_type": "t5", "n_positions": 512}, {"shared.weight": (9, 2)}) is None
    assert position_limit({"model_type": "gptj", "n_positions": 32}, {}) == 32
    tables = {"model.encoder.embed_positions.weight": (34, 2), "model.decoder.embed_positions.weight": (18, 2)}
    assert position_limit({"model_type": "led", "max_encoder_position_embeddings": 32}, tables) == 32


def test_a_change_in_the_middle_of_a_large_file_is_another_backbone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    file, size = model / WEIGHTS, 65 * 2**20
    with file.open("wb") as weights:
        weights.truncate(size)
    fresh = weights_digest(str(model))
    assert not (tmp_path / "cache").exists(), "a file that may still be written was remembered"
    stamp = file.stat().st_mtime_ns
    while time.time_ns() - file.stat().st_ctime_ns < 2.1e9:
        time.sleep(0.1)
    assert weights_digest(str(model)) == fresh
    (entry,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    entry.write_text("0" * 64)
    assert weights_digest(str(model)) != fresh, "the file was read again"
    with file.open("r+b") as weights:
        weights.seek(size // 2)
        weights.write(b"x")
    os.utime(file, ns=(stamp, stamp))
    changed = weights_digest(str(model))
    assert changed != fresh and file.stat().st_mtime_ns == stamp
    shutil.rmtree(tmp_path / "cache")
    assert weights_digest(str(model)) == changed
