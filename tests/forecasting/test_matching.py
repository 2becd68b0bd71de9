"""``--match-parameters``: every method at the size nearest to one budget, counted as it will be trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from mtlbench.cli import cli
from mtlbench.errors import PluginError, RequestError
from mtlbench.forecasting.matching import Matching, match_parameters, nearest_size, read_budget
from mtlbench.forecasting.memory import count_parameters
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request, Requests
from mtlbench.plugins import load_method, offers
from mtlbench.store import RunFolder

TASKS = "glue/rte,glue/sst2"
UNSIZED = {"base", "bitfit", "full"}
"""Our methods without a size; those that wrap peft say it by its options."""


def matched(methods: str, budget: str, model: str = "demo") -> Matching:
    requests = Requests(parts=(Request(methods=methods, tasks=TASKS, model=model),), notes=())
    _, (found,) = match_parameters(requests, read_budget(budget))
    return found


def trained(variant: str) -> int:
    (cell,) = make_plan(Request(methods=variant, tasks=TASKS)).cells
    return count_parameters(cell).training


@pytest.mark.parametrize("jump", [1, 7, 1000])
@pytest.mark.parametrize("limit", [None, 37])
def test_the_nearest_size_is_that_of_trying_all(jump: int, limit: int | None) -> None:
    counts = {size: 10 + jump * (size - size % 3) + size * size // 5 for size in range(1, 3000)}

    def at(size: int) -> int | None:
        return None if limit is not None and size > limit else counts[size]

    for target in (counts[1], counts[2] + 1, counts[20], counts[30] + jump // 2, counts[36] + 3):
        size, reached, largest = nearest_size(at, target=target, smallest=counts[1], whose="x")
        allowed = [counts[size] for size in range(1, limit + 1 if limit else 3000)]
        assert reached == counts[size] == min(allowed, key=lambda count: (abs(count - target), count))
        assert largest == (target > max(allowed))


def test_a_size_that_stops_growing_is_the_largest() -> None:
    assert nearest_size(lambda size: 10 * min(size, 20), target=900, smallest=10, whose="x")[1:] == (200, True)
    assert nearest_size(lambda size: 10 * min(size, 20), target=200, smallest=10, whose="x")[1:] == (200, False)


def test_a_number_that_falls_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match="must not fall as the size rises"):
        nearest_size(lambda size: 1000 // size, target=2000, smallest=1000, whose="x")


@pytest.mark.parametrize("text", ["0.5%", "100 %", "1e6", "500k", "2M", "33000"])
def test_budgets_that_can_be_read(text: str) -> None:
    expected = {"0.5%": 5000, "100 %": 10**6, "1e6": 10**6, "500k": 500_000, "2M": 2 * 10**6, "33000": 33000}
    assert read_budget(text).of(10**6) == expected[text]


@pytest.mark.parametrize("text", ["", "half", "-5", "0", "0%", "101%", "1e", "1 000", "0.2", "nan", "1e999"])
def test_budgets_that_cannot_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no budget"):
        read_budget(text)


def ours() -> list[str]:
    own = [name for name in offers("methods") if load_method(name).__module__.startswith("mtlbench_methods.")]
    return [name for name in own if not load_method(name).__module__.endswith("peft_tuners")]


def test_every_method_of_ours_but_three_says_its_size_and_grows_with_it() -> None:
    names = ours()
    assert len(names) > 25 and set(names) > UNSIZED
    for name in names:
        made = load_method(name).with_settings({})
        assert (made.size_field is None) == (name in UNSIZED), name
        if made.size_field is not None:
            assert made.size_field in {field.name for field in dataclasses.fields(made)}, name


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "adalora",
        "moelora",
        "houlsby",
        "prefix[reparam=mlp]",
        "prefixnas",
        "peml",
        "ta_lora",
        "mpt",
        "vera[r=1]",
    ],
)
def test_the_number_is_the_one_counted_of_the_variant_and_none_is_nearer(name: str) -> None:
    given = name.replace("[r=1]", "")
    (method,) = matched(given, "60k").methods
    assert method.parameters == trained(method.variant)
    made = load_method(given.partition("[")[0]).with_settings({})
    assert made.size_field is not None
    if name in ("lora", "prefixnas", "mpt"):
        size = method.moved[made.size_field]
        assert isinstance(size, int)
        beside = [f"{name}[{made.size_field}={size + by}]" for by in (-1, 1)]
        assert all(abs(trained(other) - 60_000) >= abs(method.parameters - 60_000) for other in beside)


def test_the_rows_say_their_sizes_and_those_without_one_say_so() -> None:
    found = matched("lora,bitfit,base,full,adalora[dropout=0.0]", "2%")
    lines = list(found.lines())
    assert lines[0] == "trained parameters matched to 22,305 on demo (2%)"
    assert lines[1] == "  lora[rank=2]: 20,480 parameters, -8.2 % from the budget, by rank"
    assert lines[2].endswith("cannot be matched, as it has no setting for its size; it trains 13,568")
    assert lines[3].endswith("base: cannot be matched, as it trains nothing")
    assert found.request.methods == "lora[rank=2],bitfit,base,full,adalora[dropout=0.0,init_rank=2,target_rank=1]"


def test_of_a_composition_the_part_that_adapts_weights_moves_unless_its_size_is_given() -> None:
    (first,) = matched("preembedd+lora", "150k").methods
    (second,) = matched("preembedd+lora[rank=2]", "150k").methods
    assert set(first.moved) == {"lora.rank"} and set(second.moved) == {"preembedd.width"}
    assert second.parameters is not None and abs(second.parameters - 150_000) < 1000
    (third,) = matched("peml[rank=2]", "150k").methods
    assert set(third.moved) == {"width"}, "a setting that is given stays"


@pytest.mark.parametrize(
    ("methods", "budget", "message"),
    [
        (
            "lora",
            "3000",
            r"lora trains at least 10,240 parameters, with rank=1, and the budget is 3,000\. Take a larger",
        ),
        ("houlsby", "1e6", r"houlsby trains at most .* with reduction=1, and the budget is 1,000,000\. Take a smaller"),
        ("prompt_tuning", "1e6", "prompt_tuning trains at most"),
        ("preembedd+lora", "20k", r"at least .* lora\.rank moves alone: give it in brackets to move the other part"),
        ("lora[rank=4]", "50k", "chooses rank of lora, which is given in brackets"),
        ("adalora[target_rank=4]", "50k", r"moves init_rank of adalora from 1 on, .* not allow: .*target_rank must be"),
        ("preembedd[width=8]+lora[rank=4]", "50k", r"chooses lora\.rank and preembedd\.width"),
    ],
)
def test_what_cannot_be_reached_is_refused_by_name(methods: str, budget: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        matched(methods, budget)


WORDS = ["--tasks", "glue/rte", "--steps", "4", "--train-rows", "40", "--eval-rows", "4", "--batch-size", "8"]


def test_the_run_trains_what_the_plan_says_and_tuning_comes_after(tmp_path: Path) -> None:
    words = ["--methods", "lora,houlsby,peml,adalora", *WORDS, "--match-parameters", "8%"]
    shown = CliRunner().invoke(cli, ["plan", *words, "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0 and "trained parameters matched to 89,221 on demo (8%)" in shown.stdout
    told = {line.split(":")[0].strip(): line for line in shown.stdout.splitlines() if "from the budget" in line}
    done = CliRunner().invoke(cli, ["run", *words, "--out", str(tmp_path / "run"), "--workers", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    records = [r for r in RunFolder(tmp_path / "run").records().values() if r.cell.method != "base"]
    assert {record.cell.variant for record in records} == set(told)
    for record in records:
        assert record.costs is not None and record.costs.trainable_parameters <= record.notes["parameters_at_once"]
        assert f" {record.notes['parameters_attached']:,} parameters, " in told[record.cell.variant]
    left = {
        record.cell.method: record.notes["parameters_at_once"] - record.costs.trainable_parameters for record in records
    }
    assert left["lora"] == left["houlsby"] == 0 < min(left["peml"], left["adalora"])
    (adalora,) = [record for record in records if record.cell.method == "adalora"]
    (file,) = RunFolder(tmp_path / "run").adapter(adalora.key).glob("*.safetensors")
    saved = load_file(file)
    pruned = {name.removesuffix("values"): int((value == 0).sum()) for name, value in saved.items() if "values" in name}
    triplet = {name: saved[f"{name}down"].shape[1] + saved[f"{name}up"].shape[0] + 1 for name in pruned}
    assert left["adalora"] == sum(count * triplet[name] for name, count in pruned.items())
    tuned = CliRunner().invoke(cli, ["plan", *words, "--tune", "quick", "--out", str(tmp_path / "none")])
    assert tuned.exit_code == 0 and "4 methods x 6 trials" in tuned.stdout and set(told) < set(tuned.stdout.split())
