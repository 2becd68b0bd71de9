"""Methods on quantised backbones are what they are on the weights that the quantised ones stand for.

The kernels run on the processor too. Without their packages (``pip install 'mtlbench[quantized]'``) these tests skip;
those of the plan, which need none, are in ``tests/planning/test_quantization.py``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_backbones import tiny_backbone
from torch import nn

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone, load_backbone
from mtlbench.backbones.quantization import KINDS
from mtlbench.backbones.quantized import quantized_linears, stored_tensors
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.cells.rebuild import rebuild, setup_of
from mtlbench.compat import quantizable_linears
from mtlbench.errors import RequestError
from mtlbench.forecasting.memory import count_parameters
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.planning.settings import build
from mtlbench.store import RunFolder

CPU = torch.device("cpu")
KIND = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(kind.package) is None, reason=kind.package))
    for name, kind in KINDS.items()
]
with_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for architecture in ("causal", "seq2seq"):
        made[architecture] = tmp_path_factory.mktemp(architecture)
        tiny_backbone(made[architecture], architecture=architecture)
    return made


def loaded(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_backbone(str(folder), dtype=dtype, attention="sdpa", device=CPU, quantize=kind)


def dense(backbone: Backbone) -> nn.Module:
    """A copy with plain linears, whose weights are what the quantised ones multiply by in training."""
    model = backbone.fresh().train()
    for name, linear in [(n, m) for n, m in model.named_modules() if m in set(quantized_linears(model))]:
        plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
        with torch.no_grad():
            plain.weight.copy_(linear(torch.eye(linear.in_features)).t())
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain.requires_grad_(False))
    return model


def attached(model: nn.Module, backbone: Backbone, method: str, settings: dict[str, object]) -> Routing:
    routing = Routing()
    cell = Cell(method=method, settings=settings, tasks=("a", "b"), model="m", protocol=Protocol(max_length=32))
    setup = setup_of(
        model, cell, architecture=backbone.architecture, train_rows=[8, 8], total_steps=10, routing=routing
    )
    build(method, settings).attach(model, setup)
    return routing


def step(model: nn.Module, routing: Routing, *, seq2seq: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits in training mode, and the gradient of every trained parameter."""
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    model.train()
    torch.manual_seed(3)
    with routing.of(torch.tensor([0, 1])):
        logits = model(ids, **({"decoder_input_ids": ids[:, :4].contiguous()} if seq2seq else {})).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits[..., 0].numel()) % 300).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


CASES = [
    ("causal", "lora", {"dropout": 0.0}),
    ("causal", "lora", {"dropout": 0.2}),
    ("causal", "mtl_lora", {"dropout": 0.0, "target": "all"}),
    ("causal", "peml", {}),
    ("causal", "prefix", {}),
    ("seq2seq", "mtl_lora", {"dropout": 0.0, "target": "all"}),
    ("seq2seq", "ta_lora", {}),
]


@pytest.mark.parametrize("kind", KIND)
def test_a_step_is_that_of_the_weights_which_the_quantised_ones_stand_for(kind: str, folders: dict[str, Path]):
    for architecture, method, settings in CASES:
        backbone = loaded(folders[architecture], kind)
        assert backbone.quantized
        models = (dense(backbone), backbone.fresh())
        outcomes = []
        for model in models:
            torch.manual_seed(0)
            routing = attached(model, backbone, method, settings)
            outcomes.append(step(model, routing, seq2seq=architecture == "seq2seq"))
        (plain, wanted), (logits, gradients) = outcomes
        assert torch.allclose(logits, plain, rtol=1e-4, atol=1e-5), method
        assert set(gradients) == set(wanted) and len(wanted) > 0
        largest = max(float(g.abs().max()) for g in wanted.values())
        for name, gradient in gradients.items():
            assert float((gradient - wanted[name]).abs().max()) <= 1e-4 * largest, f"{method}: {name}"
        assert backbone.checksum.holds()


@pytest.mark.parametrize("kind", KIND)
def test_copies_share_codes_and_scales_and_nothing_writes_into_them(kind: str, folders: dict[str, Path]):
    backbone = loaded(folders["causal"], kind)
    plain = loaded(folders["causal"], "none")
    assert backbone.parameters == plain.parameters and backbone.fingerprint != plain.fingerprint
    one, other = backbone.fresh(), backbone.fresh()
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    for model in (one, other):
        for training in (False, True, False):
            with torch.no_grad():
                model.train(training)(ids)
    places = [
        {name: tensor.data_ptr() for name, tensor in stored_tensors(model)} for model in (backbone.model, one, other)
    ]
    assert places[0] == places[1] == places[2] and len(places[0]) > len(list(plain.model.parameters()))
    with torch.no_grad():
        assert torch.equal(one(ids).logits, other(ids).logits)
    assert backbone.checksum.holds()
    scale = [
        t for n, t in stored_tensors(one) if n not in dict(plain.model.named_parameters()) and t.is_floating_point()
    ]
    scale[-1].view(-1)[0] += 1
    assert not backbone.checksum.holds(), "a changed scale is a changed backbone"


@pytest.mark.parametrize("kind", KIND)
def test_nothing_is_merged_into_quantised_weights(kind: str, folders: dict[str, Path]):
    backbone = loaded(folders["causal"], kind)
    for method in ("lora", "multilora", "peml"):
        model = backbone.fresh()
        routing = attached(model, backbone, method, {})
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.01
        model.eval()
        ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), routing.of(torch.tensor([0, 1])):
            before = model(ids).logits
            build(method, {}).finish(model)
            after = model(ids).logits
        assert any(isinstance(module, LowRankLinear) for module in model.modules())
        if method != "peml":  # it derives a part of its searched prefix
            assert torch.equal(before, after)


@pytest.mark.parametrize("kind", KIND)
def test_the_forecast_knows_the_bytes(kind: str, tmp_path: Path):
    from helpers.tiny_backbones import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(architecture="causal")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cell = Cell(method="lora", tasks=("glue/rte",), model=str(tmp_path), protocol=Protocol(quantize=kind, steps=1))
    counts = count_parameters(cell)
    backbone = loaded(tmp_path, kind)
    found = {id(m): n for n, m in backbone.model.named_modules()}
    assert {found[id(m)] for m in quantized_linears(backbone.model)} == quantizable_linears(model)
    stored = {t.data_ptr(): t.numel() * t.element_size() for _, t in stored_tensors(backbone.model)}
    expected = counts.weight_bytes(4) - 4 * counts.largest_packed
    # bitsandbytes keeps a table of 256 values with each linear, which a real one makes nothing of
    assert expected <= sum(stored.values()) <= 1.04 * expected
    assert expected < 0.5 * count_parameters(cell_without(cell)).weight_bytes(4)


@with_bitsandbytes
def test_transposed_projections_with_biases_are_quantised_too(tmp_path: Path):
    from helpers.tiny_backbones import tiny_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer(architecture="causal")
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    for kind, apart in (("nf4", 0.2), ("int8", 0.02)):
        backbone = loaded(tmp_path, kind, torch.bfloat16)
        assert len(list(quantized_linears(backbone.model))) == 4
        copy = backbone.fresh().eval()
        attached(copy, backbone, "ta_lora", {})  # reads prompts through the fused projection and its bias
        with torch.no_grad():
            wanted, found = model(ids).logits, backbone.fresh().eval()(ids).logits.float()
        assert float((found - wanted).abs().max() / wanted.abs().max()) < apart
        assert backbone.checksum.holds()


def cell_without(cell: Cell) -> Cell:
    return Cell(method=cell.method, tasks=cell.tasks, model=cell.model, protocol=Protocol(steps=1))


def ran(model: str, out: Path, methods: str, **protocol: object) -> tuple[RunFolder, list[object]]:
    options = {"steps": 2, "batch_size": 4, "train_rows": 16, "eval_rows": 8, "evals_per_run": 0, **protocol}
    plan = make_plan(Request(methods=methods, tasks="glue/rte", model=model, data="demo", protocol=options))
    folder = RunFolder(out)
    folder.preflight()
    bench = Bench(device="cpu", threads=1, data="demo")
    records = [run_cell(cell, bench=bench, folder=folder, events=Events({})) for cell in plan.cells]
    return folder, records


@pytest.mark.parametrize("kind", KIND)
def test_a_cell_passes_its_guards_and_folders_already_quantised_give_the_same(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    folder, records = ran(str(folders["causal"]), tmp_path / "run", "base,lora", quantize=kind)
    assert [r.status for r in records] == ["ok", "ok"], [r.failure for r in records]
    assert all(all(r.guards.values()) for r in records) and records[1].costs.inference_parameters > 0
    rebuilt = rebuild(records[1], folder.adapter(records[1].cell.key))
    assert any(True for _ in quantized_linears(rebuilt.model))
    saved = tmp_path / "saved"
    backbone = loaded(folders["causal"], kind)
    backbone.model.save_pretrained(saved)
    backbone.tokenizer.save_pretrained(saved)
    assert loaded(saved, "none").fingerprint == backbone.fingerprint
    with pytest.raises(RequestError, match="quantised already"):
        loaded(saved, kind)
    _, again = ran(str(saved), tmp_path / "again", "base,lora")
    assert [r.scores for r in again] == [r.scores for r in records]
    assert count_parameters(again[1].cell).weight_bytes(4) == count_parameters(records[1].cell).weight_bytes(4)
    with pytest.raises(RequestError, match=r"full, dora train or read the weights .* quantised"):
        make_plan(Request(methods="full,lora,dora", tasks="glue/rte", model=str(saved), data="demo"))


@with_bitsandbytes
def test_a_method_that_reads_weights_is_skipped_where_only_the_worker_can_know(
    folders: dict[str, Path], tmp_path: Path
):
    plan = make_plan(
        Request(
            methods="lora", tasks="glue/rte", model=str(folders["causal"]), data="demo", protocol={"quantize": "nf4"}
        )
    )
    (cell,) = plan.cells
    cell = replace(cell, method="dora")
    folder = RunFolder(tmp_path / "run")
    folder.preflight()
    record = run_cell(cell, bench=Bench(device="cpu", threads=1, data="demo"), folder=folder, events=Events({}))
    assert record.status == "skipped" and "quantised (nf4)" in record.failure.message
