"""peft's tuners as methods: each attaches or says why not, trains, reloads, and exports what peft reads."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from functools import lru_cache
from importlib import metadata

import pytest
import torch
from peft import PeftModel, PeftType
from torch import nn
from transformers import LlamaConfig

from mtlbench.backbones.backbone import Backbone, fingerprint
from mtlbench.cells.guards import label_logits, same_logits
from mtlbench.errors import RequestError
from mtlbench.planning.listing import peft_line, peft_types
from mtlbench.planning.settings import build, read_settings
from mtlbench.plugins import offers
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, trainable_names
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods.peft_catalog import ELSEWHERE, PAPERS, REFUSED

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
BUILDERS = [tiny_causal, tiny_seq2seq]
NAMES = sorted(name.lower() for name in PAPERS)
SMALL = {
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 8},
    "psoft": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 50},
}
"""Settings for widths of 16 to 64, where peft's defaults do not fit."""


def batch_for(setup):
    return collate(
        toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )


@lru_cache
def backbone(builder) -> Backbone:
    model = builder(0)
    return Backbone("tiny", model, None, "", 0, fingerprint(model))


def attached(builder, method, *, seed=2**62 + 5):
    model = backbone(builder).fresh()
    setup = setup_for(model, seed=seed)
    method.attach(model, setup)
    return model, setup


def trainable(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def loss_gradients(model, batch, setup):
    model.zero_grad()
    with setup.routing.of(batch.tasks):
        row_losses(model, batch, setup.routing).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@lru_cache
def trained(builder, name):
    """A method after three steps: the model, its start, and which parameters had a gradient."""
    torch.manual_seed(0)
    method = build(name, SMALL.get(name, {}))
    model, setup = attached(builder, method)
    batch = batch_for(setup)
    first, start = trainable(model), label_logits(model, batch, setup.routing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    reached = set()
    model.train()
    for _ in range(3):
        for parameter, grad in loss_gradients(model, batch, setup).items():
            assert grad is None or grad.isfinite().all(), parameter
            if grad is not None and grad.any():
                reached.add(parameter)
        optimizer.step()
    model.eval()
    return method, model, setup, first, start, reached


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", NAMES)
def test_it_starts_where_it_promises_and_trains_all_it_attached(builder, name):
    method, model, setup, first, start, reached = trained(builder, name)
    batch = batch_for(setup)
    stock = label_logits(backbone(builder).fresh(), batch, setup.routing)
    if method.identity_at_start:
        assert same_logits(stock, start, tolerance=1e-5)
    elif name != "frod":  # rebuilt from factors that are exact to the last bits here, and no closer in 16 bits
        assert not torch.equal(stock, start)
    assert reached == set(first)
    assert {p.dtype for p in first.values()} == {torch.float32}
    assert not torch.equal(label_logits(model, batch, setup.routing), start)
    assert fingerprint(backbone(builder).model) == backbone(builder).fingerprint


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_exported_it_gives_the_same_logits(builder, name, tmp_path):
    method, model, setup, first, _, _ = trained(builder, name)
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    save_adapter(model, tmp_path, {})
    method.finish(model)
    assert torch.equal(label_logits(model, batch, setup.routing), logits)
    method.export(model, tmp_path / "peft")

    torch.manual_seed(1)
    again, _ = attached(builder, method)
    started = trainable(again)
    assert all(torch.equal(started[key], value) for key, value in first.items()), "the global seed changed the start"
    assert trainable_names(again) == trainable_names(model)
    load_adapter(again, tmp_path)
    assert same_logits(logits, label_logits(again, batch, setup.routing), tolerance=1e-6)

    loaded = PeftModel.from_pretrained(builder(0), tmp_path / "peft").base_model.model
    assert same_logits(logits, label_logits(loaded, batch, setup.routing), tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vera", {}),
        ("randlora", {"r": 4}),
        ("fourierft", {"n_frequency": 50}),
        ("shira", {"r": 4}),
        ("unilora", {}),
        ("tinylora", {}),
        ("waveft", {"n_frequency": 50}),
    ],
)
def test_frozen_random_parts_follow_the_seed_of_the_cell(name, settings):
    method = build(name, settings)
    outputs = []
    for seed in (1, 1, 2):
        model, setup = attached(tiny_causal, method, seed=seed)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(0.1 * torch.randn(p.shape, generator=draw))
        outputs.append(label_logits(model, batch_for(setup), setup.routing))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_seed_among_the_settings_wins():
    models = [attached(tiny_causal, build("vera", {"projection_prng_key": 3}), seed=seed)[0] for seed in (1, 2)]
    one, other = ({n: b for n, b in m.named_buffers() if "vera" in n} for m in models)
    assert one
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_dropout": 0.1},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "gaussian"},
        {"type": "BOFT", "boft_block_size": 0, "boft_block_num": 4},
        {"type": "GLORA", "config_A_B": "vector"},
        {"type": "LOKR", "decompose_both": True},
        {"type": "PSOFT", "r": 8, "ab_svd_init": "pissa_init"},
        {"type": "ROAD", "group_size": 8, "variant": "road_4"},
    ],
)
def test_forms_of_a_tuner(settings, tmp_path):
    method = build("peft", settings)
    model, setup = attached(tiny_causal, method)
    batch = batch_for(setup)
    stock = label_logits(backbone(tiny_causal).fresh(), batch, setup.routing)
    assert same_logits(stock, label_logits(model, batch, setup.routing), tolerance=1e-5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.01
    logits = label_logits(model, batch, setup.routing)
    method.export(model, tmp_path)
    assert fingerprint(backbone(tiny_causal).model) == backbone(tiny_causal).fingerprint, "shared weights were written"
    loaded = PeftModel.from_pretrained(tiny_causal(0), tmp_path).base_model.model
    assert same_logits(logits, label_logits(loaded, batch, setup.routing), tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"), [("hra", {"r": 3}), ("hra", {"apply_GS": True}), ("deft", {"para": True})]
)
def test_settings_that_leave_the_backbone_are_not_promised_to_start_there(name, settings):
    method = build(name, settings)
    model, setup = attached(tiny_causal, method)
    stock = label_logits(backbone(tiny_causal).fresh(), batch_for(setup), setup.routing)
    assert not method.identity_at_start
    assert not same_logits(stock, label_logits(model, batch_for(setup), setup.routing), tolerance=1e-4)


@pytest.mark.parametrize("name", ["osf", "pvera", "vblora"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    method = build(name, SMALL.get(name, {}))
    gradients = []
    for context in (lambda model: nullcontext(), checkpointing):
        model, setup = attached(tiny_causal, method)
        model.train()
        torch.manual_seed(5)
        with context(model):
            gradients.append(loss_gradients(model, batch_for(setup), setup))
    for parameter, want in gradients[0].items():
        assert (gradients[1][parameter] - want).norm() <= 1e-4 * want.norm(), parameter


def test_ia3_scales_keys_values_and_what_the_last_feed_forward_projection_reads():
    model, _ = attached(tiny_causal, build("ia3", {}))
    vectors = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    last = {name.split(".ia3_l")[0].rpartition(".")[2]: shape for name, shape in vectors.items()}
    assert last == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}
    model, _ = attached(tiny_seq2seq, build("ia3", {"target": "q+wi_0+wo"}))
    vectors = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    last = {name.split(".ia3_l")[0].rpartition(".")[2]: shape for name, shape in vectors.items()}
    assert last == {"q": (32, 1), "wi_0": (64, 1), "wo": (1, 64)}


def test_an_architecture_that_peft_does_not_know_is_adapted_by_the_role_of_its_layers():
    class StrangeConfig(LlamaConfig):
        model_type = "strange"

    model = tiny_causal(0)
    model.config.__class__ = StrangeConfig
    setup = setup_for(model)
    build("ia3", {}).attach(model, setup)
    named = tiny_causal(0)
    build("ia3", {"target": "k_proj+v_proj+down_proj"}).attach(named, setup_for(named))
    assert trainable_names(model) == trainable_names(named) and len(trainable_names(model)) == 6


@pytest.mark.parametrize("builder", BUILDERS)
def test_norms_of_a_16_bit_backbone_are_trained_in_float32(builder):
    model = builder(0).to(torch.bfloat16)
    setup = setup_for(model)
    batch = batch_for(setup)
    stock = label_logits(model, batch, setup.routing)
    build("ln_tuning", {}).attach(model, setup)
    norms = [m for m in builder(0).modules() if "Norm" in type(m).__name__]
    assert len(trainable_names(model)) == len(norms)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert same_logits(stock, label_logits(model, batch, setup.routing), tolerance=1e-2)


def test_osf_is_refused_where_peft_would_lose_its_projection():
    model = tiny_causal(0).to(torch.bfloat16)
    with pytest.raises(RequestError, match="--dtype float32"):
        build("osf", {}).attach(model, setup_for(model))


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("c3a", {}, "block size is 256"),
        ("miss", {}, r"`r` \(64\)"),
        ("oft", {"oft_block_size": 24}, r"Adjusted `oft_block_size` to \(16\)"),
        ("road", {}, r"divisible by group_size \(64\)"),
        ("shira", {}, "rank 32"),
        ("vblora", {}, "divisible by `vector_length` 256"),
        ("waveft", {}, "the value passed is 2592"),
        ("glora", {"config_A_B": "none"}, "leaves nothing to train"),
        ("vera", {"target": "qkv"}, "no projection named 'qkv'"),
    ],
)
def test_what_does_not_fit_the_backbone_is_refused_with_the_reason(builder, name, settings, reason):
    with pytest.raises(RequestError, match=reason):
        attached(builder, build(name, settings))


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_a_method_is_refused_when_planning(kind):
    with pytest.raises(RequestError, match=f"peft's {kind} cannot be used: "):
        read_settings("peft", {"type": kind})


def test_settings_are_typed_by_the_configuration_of_the_tuner():
    words = {"type": "VERA", "r": "8", "vera_dropout": "0", "target": "attention", "learning_rate": "1e-2"}
    read = read_settings("peft", words)
    assert read == {"type": "VERA", "r": 8, "vera_dropout": 0.0, "target": "attention", "learning_rate": 1e-2}
    assert isinstance(read["vera_dropout"], float)
    assert build("peft", read).settings() == read
    assert build("vera", {"r": 8}).settings() == {"learning_rate": None, "type": "VERA", "target": "default", "r": 8}
    assert read_settings("peft", {"use_dora": "true"}) == {"use_dora": True}
    assert read_settings("lokr", {"init_weights": "lycoris"}) == {"init_weights": "lycoris"}
    assert build("vera", {"r": 8}) == build("vera", {"r": 8}) != build("vera", {"r": 4})
    assert hash(build("vera", {"r": 8})) == hash(build("vera", {"r": 8}))


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("peft", {"type": "vera"}, r"has no tuner 'vera'\. Did you mean 'VERA'\?"),
        ("peft", {"type": "VERRA"}, r"has no tuner 'VERRA'\. .*VERA"),
        ("peft", {"typ": "VERA"}, r"no setting 'typ'\. Did you mean 'type'\?"),
        ("vera", {"type": "LOHA"}, "'vera' has no setting 'type'"),
        ("vera", {"vera_dropuot": "0.1"}, r"no setting 'vera_dropuot'\. Did you mean 'vera_dropout'\?"),
        ("vera", {"r": "many"}, "r must be a whole number, got 'many'"),
        ("vera", {"r": "0"}, r"vera\[r=0\]: r must be a whole number of at least 1, got 0"),
        ("vera", {"vera_dropout": "1.5"}, r"vera_dropout must be at least 0 and below 1, got 1\.5"),
        ("vera", {"d_initial": "nan"}, "d_initial must be a finite number, got nan"),
        ("vera", {"target": "q proj"}, "target must be default, all, attention"),
        ("vera", {"target_modules": "q_proj"}, "'target_modules', though peft has it: projections are chosen with"),
        ("vera", {"bias": "all"}, "'bias', though peft has it: the backbone's own parameters stay frozen"),
        ("vera", {"init_weights": "false"}, "'init_weights', though peft has it"),
        ("loha", {"rank_pattern": "x"}, "'rank_pattern', though peft has it: it is no plain value"),
        ("adamss", {"use_asa": "true"}, "adaptive subspaces"),
        ("boft", {"boft_n_butterfly_factor": "2"}, "falls back to 1"),
        ("road", {"variant": "road_3"}, r"road\[variant=road_3\]: .*road_1, road_2 or road_4"),
        ("oft", {"oft_block_size": "0"}, "Either `r` or `oft_block_size` must be non-zero"),
        ("ln_tuning", {"target": "attention"}, r"ln_tuning\[target=attention\]: target must be default"),
        ("peft", {"init_lora_weights": "eva"}, "must be a start that needs no data.*got eva"),
    ],
)
def test_wrong_settings_are_refused_when_planning(name, words, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_settings(name, words)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_given_in_code_is_refused():
    with pytest.raises(RequestError, match=r"vera\[rr=8\] has no setting 'rr'"):
        build("vera", {"rr": 8})


def test_every_short_name_is_an_entry_point_with_a_source():
    ours = {name for name, found in offers("methods").items() if found[0].module == "mtlbench_methods.peft_tuners"}
    assert ours == {*NAMES, "peft"}
    for name in ours:
        assert "huggingface/peft" in build(name, {}).source


@pytest.mark.skipif(not metadata.version("peft").startswith("0.21."), reason="the catalogue is of peft 0.21")
def test_every_tuner_of_peft_has_a_short_name_or_a_reason():
    assert set(peft_types()) == {*PAPERS, *REFUSED, "LORA"}
    assert not set(PAPERS) & set(REFUSED)
    assert set(PAPERS) >= ELSEWHERE


def test_the_list_shows_what_peft_offers_and_loads_neither_peft_nor_torch():
    assert set(peft_types()) == {kind.value for kind in PeftType}
    code = (
        "import sys; from mtlbench.cli import cli; cli(['list'], standalone_mode=False);"
        "print([m for m in ('peft', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert f"  {peft_line()}" in lines
    assert "VERA, WAVEFT" in peft_line()
    assert metadata.version("peft") in peft_line()


def test_other_methods_are_planned_without_peft():
    code = (
        "import sys; from mtlbench.planning.settings import read_settings; read_settings('lora', {'rank': '4'});"
        "read_settings('mtl_lora', {}); print([m for m in ('peft', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wrapper_is_no_part_of_the_model():
    model, _ = attached(tiny_causal, build("vera", {}))
    assert all(isinstance(child, nn.Module) for child in model.children())
    assert not any(name.startswith("mtlbench_peft") for name, _ in model.named_modules())
    assert all(not key.startswith("mtlbench_peft") for key in model.state_dict())
