"""Words to cells: every wrong word is refused before compute, and cells are the same whenever the words are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtlbench.api.cell import Cell, Protocol
from mtlbench.backbones.names import weights_digest
from mtlbench.errors import DataError, RequestError
from mtlbench.planning.mixing import ordered, read_mixing
from mtlbench.planning.plan import make_plan, resolve_tasks
from mtlbench.planning.presets import preset
from mtlbench.planning.protocols import choose_protocol
from mtlbench.planning.request import Request, read_requests


def test_suites_and_single_tasks_become_full_names_in_order():
    tasks, suites = resolve_tasks("glue/rte,glue/sst2,glue/rte")
    assert list(tasks) == ["glue/rte", "glue/sst2"] and list(suites) == ["glue"]
    assert len(resolve_tasks("glue")[0]) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--tasks is empty"),
        ("gleu", r"Unknown suite 'gleu'\. Did you mean 'glue'"),
        ("glue/rtee", r"no task 'rtee'\. Did you mean 'rte'"),
        ("rte", r"'rte' is no suite but a task\. Write attempt21/rte or glue/rte or .*superglue/rte\."),
        ("glue/cola,STSB", r"'STSB' is no suite but a task\. Write attempt21/stsb or glue/stsb\."),
    ],
)
def test_unknown_tasks_name_the_nearest(words: str, message: str):
    with pytest.raises(RequestError, match=message):
        resolve_tasks(words)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", (0,)), ("0-4", (0, 1, 2, 3, 4)), (" 3, 1 ", (3, 1)), ("7,0-2", (7, 0, 1, 2)), ("5-5", (5,))],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]):
    (request,) = read_requests({"methods": "lora", "tasks": "glue", "seeds": text}).parts
    assert request.seeds == seeds


@pytest.mark.parametrize("text", ["4-2", "0-", "-", "0-1-2", "a-b", "0-99999999999", "0-3,2", "-1", "0--1", ""])
def test_seeds_that_are_none_are_refused(text: str):
    with pytest.raises(RequestError, match="--seeds"):
        read_requests({"methods": "lora", "tasks": "glue", "seeds": text})


def test_cells_are_methods_times_seeds_with_one_protocol():
    plan = make_plan(Request(methods="lora,mtl_lora[rank=4]", tasks="glue/rte", seeds=(0, 1)))
    assert [(c.variant, c.seed) for c in plan.cells] == [
        ("lora", 0),
        ("mtl_lora[rank=4]", 0),
        ("lora", 1),
        ("mtl_lora[rank=4]", 1),
    ]
    assert len({c.protocol.hash() for c in plan.cells}) == 1
    assert plan.cells[0].protocol.data.startswith("demo:")
    assert plan.cells[0].plugins == {"mtlbench": "0.1.0"}
    assert plan.default_folder == Path("runs/glue-demo")


def test_a_key_depends_on_everything_that_changes_the_result():
    cell = Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol())
    others = [
        Cell(method="base", tasks=("glue/rte",), model="demo", protocol=Protocol()),
        Cell(method="lora", settings={"rank": 4}, tasks=("glue/rte",), model="demo", protocol=Protocol()),
        Cell(method="lora", tasks=("glue/rte", "glue/sst2"), model="demo", protocol=Protocol()),
        Cell(method="lora", tasks=("glue/rte",), model="demo-t5", protocol=Protocol()),
        Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(max_length=128)),
        Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(), seed=1),
        Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(), plugins={"mtlbench": "9"}),
    ]
    assert len({cell.key, *(o.key for o in others)}) == len(others) + 1
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_the_same_cell_twice_is_refused():
    with pytest.raises(RequestError, match="lora with seed 0 is asked for twice"):
        make_plan(Request(methods="lora,lora", tasks="glue/rte"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/folder", "no model folder 'no/such/folder'"),
        ("./demo", "no model folder './demo'"),
        ("", "no model folder ''"),
    ],
)
def test_a_model_that_cannot_exist_is_refused(model: str, message: str):
    with pytest.raises(RequestError, match=message):
        make_plan(Request(methods="lora", tasks="glue/rte", model=model, data="demo"))


def test_a_model_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"has no config\.json"):
        make_plan(Request(methods="lora", tasks="glue/rte", model=str(tmp_path), data="demo"))


def test_a_missing_data_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        make_plan(Request(methods="lora", tasks="glue/rte", data=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("batch_size", -1), ("steps", 0), ("max_length", 1), ("train_rows", 0), ("eval_rows", -3),
        ("epochs", 0.0), ("epochs", float("nan")), ("learning_rate", -1e-3), ("learning_rate", float("nan")),
        ("schedule", "cosin"), ("dtype", "fp16"), ("attention", "flash"), ("mixing", "temperature"),
        ("mixing", "capped:-1"), ("mixing", "proportonal"), ("patience", 0), ("micro_batch", 5), ("no_such", 1),
    ],
)  # fmt: skip
def test_impossible_protocols_are_refused(field: str, value: object):
    with pytest.raises(
        RequestError, match=r"batch_size|micro_batch" if field == "micro_batch" else field.split("_")[0]
    ):
        choose_protocol({field: value})


def test_mixing_words_give_the_weight_of_a_task():
    rows = [400, 4, 0]
    for words, weights in {
        "proportional": [400, 4, 0],
        "uniform": [1, 1, 0],
        "temperature:2": [20, 2, 0],
        "capped:100": [100, 4, 0],
        "weights:a/b=2,a/c=0.5,a/d=1": [2, 0.5, 0],
        "fraction": [400, 4, 0],
    }.items():
        assert read_mixing(words).weights(rows) == weights
    for words in (
        "proportonal", "temperature", "temperature:0", "temperature:nan", "capped:-1", "capped:1.5", "uniform:2",
        "fraction:2", "weights:", "weights:a", "weights:a=0", "weights:a=1,a=2", "weights:a=inf", "weights:=1",
    ):  # fmt: skip
        with pytest.raises(RequestError, match="Known: proportional"):
            read_mixing(words)


def test_fixed_weights_come_in_the_order_of_the_tasks():
    tasks = ["glue/rte", "glue/sst2"]
    assert ordered("weights:glue/sst2=1,glue/rte=2.0", tasks) == "weights:glue/rte=2,glue/sst2=1"
    assert ordered("uniform", tasks) == "uniform"
    with pytest.raises(RequestError, match=r"'glue/rt' is not trained here\. Did you mean 'glue/rte'"):
        ordered("weights:glue/rt=1,glue/sst2=1", tasks)
    with pytest.raises(RequestError, match="no weight to glue/sst2"):
        ordered("weights:glue/rte=1", tasks)


def test_presets():
    assert preset("glue/quick")["tasks"] == "glue"
    with pytest.raises(RequestError, match=r"Unknown preset 'glue/quik'\. Did you mean 'glue/quick'"):
        preset("glue/quik")


def test_other_weights_are_another_cell(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    digests = []
    for content in (b"a" * 10, b"b" * 10, b"a" * (65 * 2**20), b"a" * (65 * 2**20 - 1) + b"b"):
        weights.write_bytes(content)
        digests.append(weights_digest(str(tmp_path)))
    assert len(set(digests)) == 4
    assert weights_digest("google/flan-t5-base") == ""
    assert weights_digest("demo") not in ("", weights_digest("demo-t5"))
    (cell,) = make_plan(Request(methods="lora", tasks="glue/rte")).cells
    assert cell.weights == weights_digest("demo")
    assert Cell.from_json(cell.to_json()) == cell


def test_a_backbone_that_changed_since_planning_is_not_trained():
    from mtlbench.cells.bench import Bench

    cell = Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(), weights="0123")
    with pytest.raises(DataError, match="changed since"):
        Bench(device="cpu", threads=None, data="demo").backbone(cell)


def test_a_setting_given_at_its_default_is_told():
    methods = "lora,lora[rank=16],lora[rank=8],mtl_lora,mtl_lora[rank=4]"
    (note,) = make_plan(Request(methods=methods, tasks="glue/rte")).notes
    assert note == "lora and lora[rank=16] are the same, a setting being given at its default: both run."
