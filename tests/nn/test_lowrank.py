"""The low-rank core: gradients, dtypes, dropout, and what it keeps for the backward."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.nn.low_rank.fused import Factors, LowRankBranch, fused_low_rank
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.loss import row_losses
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora

MIXES = ["none", "gate", "token", "matrix", "per_row", "up_scale"]


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def inputs(mix, dtype=torch.float64):
    """A frozen linear, an input ``[3, 7, 5]`` and the tensors of the factors."""
    torch.manual_seed(0)
    base = nn.Linear(5, 4, dtype=dtype).requires_grad_(False)
    rows = (3,) if mix == "per_row" else ()
    given = {"x": drawn(3, 7, 5, dtype=dtype), "down": drawn(*rows, 6 if mix == "up_scale" else 2, 5, dtype=dtype)}
    given["up"] = drawn(*rows, 4, 6 if mix in ("matrix", "up_scale") else 2, dtype=dtype)
    if mix == "up_scale":
        given["up_scale"] = drawn(4, 2, dtype=dtype)
    shape = {"gate": (3, 1, 2), "token": (3, 7, 2), "matrix": (3, 6, 2)}.get(mix)
    if shape:
        given["matrix" if mix == "matrix" else "gate"] = drawn(*shape, dtype=dtype)
    return base, given


def ours(base, x, scale=1.0, dropout=0.0, **tensors):
    return fused_low_rank(x, [LowRankBranch(base.weight, base.bias, Factors(**tensors, scale=scale))], dropout=dropout)[
        0
    ]


def plain(base, x, down, up, scale=1.0, gate=None, matrix=None, up_scale=None):
    """The formula by ordinary operations."""
    if up_scale is not None:
        up = torch.einsum("ogr,og->ogr", up.unflatten(1, (up_scale.shape[1], -1)), up_scale).flatten(1)
    hidden = torch.einsum("nli,...ri->nlr" if down.dim() == 2 else "nli,nri->nlr", x, down)
    if gate is not None:
        hidden = hidden * gate
    if matrix is not None:
        hidden = torch.einsum("nlr,nqr->nlq", hidden, matrix)
    return base(x) + scale * torch.einsum("nlr,or->nlo" if up.dim() == 2 else "nlr,nor->nlo", hidden, up)


@pytest.mark.parametrize("mix", MIXES)
def test_it_is_the_formula_with_its_gradients(mix):
    base, given = inputs(mix)
    torch.testing.assert_close(ours(base, **given, scale=1.5), plain(base, **given, scale=1.5))
    names = list(given)

    def run(*tensors):
        return ours(base, **dict(zip(names, tensors, strict=True)), scale=1.5)

    assert torch.autograd.gradcheck(run, tuple(given.values()))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_branches_on_one_input_are_the_branches_one_by_one(mix, dropout):
    base, given = inputs(mix)
    wide = nn.Linear(5, 9, bias=False, dtype=torch.float64).requires_grad_(False)
    _, other = inputs(mix)
    other["up"] = drawn(*other["up"].shape[:-2], 9, other["up"].shape[-1])
    if mix == "up_scale":
        other["up_scale"] = drawn(9, 2)
    x, gate = given.pop("x"), drawn(3, 7, 5)
    other.pop("x")
    names = [*given]

    def run(x, gate, *tensors):
        torch.manual_seed(3)  # one mask for every call
        one, two = (dict(zip(names, part, strict=True)) for part in (tensors[: len(names)], tensors[len(names) :]))
        branches = [
            LowRankBranch(base.weight, base.bias, Factors(**one)),
            LowRankBranch(wide.weight, None, Factors(**two, scale=2.0)),
        ]
        return fused_low_rank(x, branches, dropout=dropout, gated=(nn.functional.silu, gate))

    tensors = (x, gate, *given.values(), *other.values())
    assert torch.autograd.gradcheck(run, tensors)
    if not dropout:
        product = nn.functional.silu(gate) * x
        first, second = run(*tensors)
        torch.testing.assert_close(first, plain(base, product, **given))
        torch.testing.assert_close(second, plain(wide, product, **other, scale=2.0))


@pytest.mark.parametrize("mix", MIXES)
def test_a_bf16_backbone_keeps_float32_parameters(mix):
    base, given = inputs(mix, torch.float32)
    want = plain(base, **given)
    x = given.pop("x")
    y = ours(base.bfloat16(), x.bfloat16(), **given)
    assert y.dtype == torch.bfloat16
    assert (y.float() - want).norm() < 0.02 * want.norm()
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, *given.values()))


@pytest.mark.parametrize("mix", MIXES)
def test_autocast_computes_in_bf16_and_gives_float32_gradients(mix):
    base, given = inputs(mix, torch.float32)
    plain(base, **given).sum().backward()
    want = {name: t.grad for name, t in given.items()}
    for t in given.values():
        t.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(base, **given)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for name, t in given.items():
        assert t.grad.dtype == torch.float32
        assert (t.grad - want[name]).norm() < 0.1 * want[name].norm()


@pytest.mark.parametrize("mix", ["none", "matrix", "per_row"])
def test_dropout_reaches_the_low_rank_path_only_and_its_gradient_is_that_of_its_mask(mix):
    base, given = inputs(mix)
    names = list(given)

    def run(*tensors):
        torch.manual_seed(3)  # one mask for every call
        return ours(base, **dict(zip(names, tensors, strict=True)), dropout=0.4)

    assert torch.autograd.gradcheck(run, tuple(given.values()))
    x = given["x"]
    assert torch.equal(ours(base, **{**given, "up": given["up"] * 0}, dropout=0.4), base(x))
    with torch.no_grad():
        mean = torch.stack([ours(base, **given, dropout=0.4) for _ in range(4000)]).mean(0)
        want = plain(base, **given)
        assert (mean - want).abs().max() < 0.1 * (want - base(x)).abs().max()


def test_dropout_is_off_in_evaluation():
    base, given = inputs("none")
    parameters = {name: given[name].detach() for name in ("down", "up")}
    layer = LowRankLinear(base, parameters, lambda p, _: Factors(p["down"], p["up"]), dropout=0.5)
    torch.testing.assert_close(layer.eval()(given["x"]), plain(base, **given))
    assert not torch.allclose(layer.train()(given["x"]), plain(base, **given))


def test_the_wrapper_shows_what_models_read_of_a_linear():
    base = nn.Linear(5, 4)
    layer = LowRankLinear(base, {}, lambda *_: Factors(torch.zeros(1, 5), torch.zeros(4, 1)))
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert (layer.in_features, layer.out_features) == (5, 4)


def of_task(p, rows):
    return Factors(p["down"], p["up"], gate=p["gates"][rows.tasks].unsqueeze(1))


def by_task(routing):
    base, given = inputs("none")
    parameters = {"down": given["down"].detach(), "up": given["up"].detach(), "gates": torch.randn(4, 2).double()}
    return LowRankLinear(base, parameters, of_task, routing=routing), given["x"]


def test_factors_by_task_outside_the_routing_are_an_error():
    for routing in (Routing(), None):
        layer, x = by_task(routing)
        with pytest.raises(RuntimeError, match="routing"):
            layer(x)


def test_factors_that_read_the_input_must_say_so():
    base, given = inputs("none")
    layer = LowRankLinear(base, {}, lambda _, rows: Factors(given["down"], given["up"], gate=rows.x[..., :2]))
    with pytest.raises(RuntimeError, match="reads_input"):
        layer(given["x"])


def test_merging_for_a_task_gives_the_function_of_that_task():
    routing = Routing()
    layer, x = by_task(routing)
    for task in range(4):
        with routing.of(torch.full((3,), task)):
            torch.testing.assert_close(layer.merged(task)(x), layer(x))
    with pytest.raises(ValueError, match="task"):
        layer.merged()


def test_factors_of_the_token_cannot_be_merged():
    base, given = inputs("none")
    parameters = {"down": given["down"].detach(), "up": given["up"].detach()}

    def token(p, rows):
        return Factors(p["down"], p["up"], gate=rows.x[..., :2])

    layer = LowRankLinear(base, parameters, token, reads_input=True)
    layer(given["x"])
    with pytest.raises(ValueError, match="token"):
        layer.merged(0)


def kept_bytes(model, run):
    """Bytes of the distinct storages kept for the backward, the model's own parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = run()
    total = sum(kept.values())
    loss.backward()
    return total


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_more_is_kept_than_peft_keeps(dropout):
    setup = setup_for(tiny_causal(0))
    rows = toy_rows(tasks=3, rows=8)
    batch = collate(rows, architecture="causal", pad_id=0, decoder_start_id=None, device=torch.device("cpu"))
    models = {}
    for method in (Lora(rank=4, dropout=dropout), MtlLora(rank=4, dropout=dropout, target="all")):
        models[method.name] = tiny_causal(0)
        method.attach(models[method.name], setup)
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules=[*setup.target_modules])
    models["peft"] = get_peft_model(tiny_causal(0), config).base_model.model
    kept = {
        name: kept_bytes(model.train(), lambda model=model: row_losses(model, batch, setup.routing).mean())
        for name, model in models.items()
    }
    assert kept["lora"] <= kept["peft"]
    if dropout:
        assert kept["lora"] < 0.8 * kept["peft"]
        assert kept["mtl_lora"] < kept["peft"]
