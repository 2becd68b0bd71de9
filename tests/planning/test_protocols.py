"""Named protocols: data with a hash that does not drift, and a name that says what was changed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from record_builder import cell, done

from mtlbench.api.cell import Cell, Protocol
from mtlbench.errors import RequestError
from mtlbench.planning.listing import protocol_lines
from mtlbench.planning.plan import make_plan
from mtlbench.planning.protocols import BASES, about, basis_of, choose_protocol, fields_of, names
from mtlbench.planning.request import Request
from mtlbench.results.study import study_of
from mtlbench.tuning.tuning import TuningOptions, make_tuning

HASHES = {
    "commonsense_170k": "48f27299ee06",
    "cpoly": "a25db8d93611",
    "mmlu_superglue": "cbb56a00bad5",
    "mtl_lora": "1abc1fc84918",
    "peml_holdout": "32671cbff9c5",
    "peml_holdout_300": "86af93ace934",
    "peml_holdout_500": "c99004d2efa4",
    "peml_metric": "c750ce598dbf",
    "peml_metric_300": "6152240ae6eb",
    "peml_metric_500": "5dbae097f1f8",
    "peml_validation": "51f88d4e9985",
    "standard": "e74b4f865006",
}
"""A released protocol is never changed: give the changed one a new name. (They all changed once: steps are drawn
from the mixture, and earlier records say that theirs held rows of like length.)"""


def test_each_value_of_a_papers_protocol_says_where_it_comes_from():
    for name in names():
        fields_set, basis = fields_of(name), basis_of(name)
        assert set(basis) == set(fields_set), name
        assert set(basis.values()) <= set(BASES)
    shown = list(protocol_lines(verbose=True))
    assert any(line.strip() == "patience = 25  (published)" for line in shown)
    assert set(fields_of("cpoly")) == {"epochs", "optimizer", "evals_per_run", "held_out"}, "not what is remembered"


def test_a_basis_of_another_kind_or_field_is_refused(tmp_path):
    for text in ('epochs = 1.0\n[basis]\nepochs = "remembered"\n', '[basis]\nepochs = "published"\n'):
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(RequestError, match="basis of 'epochs'"):
            made(name=str(tmp_path / "mine.toml"))


def test_without_early_stopping_no_row_is_kept_back_and_a_search_is_refused_there():
    for name in names():
        if made(name=name).evals_per_run == 0:
            assert made(name=name).held_out == 0, name
    request = Request(methods="lora,peml", tasks="glue/rte,glue/sst2", protocol={"name": "mtl_lora"})
    with pytest.raises(RequestError, match="peml searches on held-out training rows"):
        make_plan(request)
    joint = Request(methods="peml[arch_update=joint]", tasks="glue/rte,glue/sst2", protocol={"name": "mtl_lora"})
    assert len(make_plan(joint).cells) == 1


def made(**options: object) -> Protocol:
    return choose_protocol(options).for_tasks((), data="")


def test_every_protocol_that_comes_along_is_locked_by_its_hash():
    assert {name: made(name=name).hash() for name in names()} == HASHES
    assert len(set(HASHES.values())) == len(HASHES)
    assert all(about(name) for name in names())


def test_standard_is_what_a_request_gets_that_names_none():
    assert fields_of("standard") == {}
    assert made().name == "standard" and replace(made(), name="", data="demo") == Protocol()


def test_options_win_and_the_name_says_so():
    assert made(name="peml_holdout_500").name == "peml_holdout_500"
    changed = made(name="peml_holdout_500", steps=10, train_rows=500, mixing="uniform")
    assert changed.name == "peml_holdout_500 + steps=10, mixing=uniform"
    assert changed.label == f"{changed.name} ({changed.hash()})"
    assert (changed.holdout, changed.train_rows, changed.steps) == (0.1, 500, 10)
    assert made(steps=7).name == "standard + steps=7"


def test_a_base_is_overlaid_and_given_epochs_put_its_steps_out_of_force(tmp_path: Path):
    mine = tmp_path / "mine.toml"
    mine.write_text('about = "mine"\nbase = "peml_holdout"\nsteps = 50\nepochs = 3\nadapt_steps = 4\nsources = "a/b"\n')
    protocol = made(name=str(mine))
    assert (protocol.holdout, protocol.steps, protocol.patience) == (0.1, 50, 25)
    assert protocol.epochs == 3.0 and isinstance(protocol.epochs, float)
    again = made(name=str(mine), epochs=2.0, adapt_epochs=1.0)
    assert (again.steps, again.epochs, again.adapt_steps, again.adapt_epochs) == (None, 2.0, None, 1.0)
    assert made(name=str(mine), steps=9).steps == 9


def test_the_name_is_in_no_hash_and_no_key_and_everything_else_is():
    one = Protocol()
    assert replace(one, name="x").hash() == one.hash()
    assert (
        Cell(method="lora", tasks=("a/b",), model="demo", protocol=replace(one, name="x")).key
        == Cell(method="lora", tasks=("a/b",), model="demo", protocol=one).key
    )
    other = {"int | None": 3, "float | None": 3.0, "int": 3, "float": 0.25, "str": "other", "bool": True}
    hashes = {one.hash()}
    for field in fields(Protocol):
        if field.name != "name":
            hashes.add(replace(one, **{field.name: other[str(field.type)]}).hash())
    assert len(hashes) == len(fields(Protocol)), "each field changes the hash"


def test_a_feature_that_is_not_used_changes_no_hash_but_switching_one_off_does():
    identity = Protocol().identity()
    assert not {"k_shot", "holdout", "sources", "adapt_steps", "checkpointing", "name"} & set(identity)
    assert Protocol(clip=0.0).identity()["clip"] == 0.0 and Protocol(evals_per_run=0).identity()["evals_per_run"] == 0


def test_a_record_of_an_earlier_version_has_what_its_cell_was_trained_with():
    """The key of a cell written before there were these fields, and what it says of them."""
    cell = Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(batching="by_length"))
    written = cell.to_json()
    written["protocol"] = {k: v for k, v in written["protocol"].items() if k not in ("batching", "optimizer")}
    read = Cell.from_json(written)
    assert (read.protocol.batching, read.protocol.optimizer) == ("by_length", "adamw")
    assert read.protocol.hash() == "569da84c0e8b" and read.key == "f27ee709a0176d00900dec0f", (
        "as version 0.1 computed them"
    )
    assert Protocol().hash() != read.protocol.hash()


def test_plugins_carry_protocols():
    assert made(name="ta_lora/32-shot").k_shot == "32"
    assert made(name="ta_lora/32-shot").sources.count("clue16/") == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stps = 3", r"sets 'stps'\. Did you mean 'steps'"),
        ('data = "demo"', "sets 'data'"),
        ("steps = 3.5", r"steps of the protocol .* must be int \| None, got 3\.5"),
        ('epochs = "3"', "must be float"),
        ("checkpointing = 1", "must be bool"),
        ("steps = true", "must be int"),
        ('base = "nobody"', "Unknown protocol 'nobody'"),
        ("steps = ", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        made(name=str(path))


def test_names_that_lead_nowhere_are_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"Unknown protocol 'standrd'\. Did you mean 'standard'"):
        made(name="standrd")
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        made(name=str(tmp_path / "none.toml"))
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'base = "{tmp_path / base}.toml"')
    with pytest.raises(RequestError, match="is based on itself"):
        made(name=str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"held_out": 0.0}, "held_out=0 leaves no rows to stop early on"),
        ({"select_by": "metric", "evals_per_run": 0}, "select_by=metric chooses among scores of the validation split"),
        ({"select_by": "acc"}, "select_by must be one of loss, metric, got 'acc'"),
        ({"k_shot": "16", "eval_from_train": 0.2}, "more labels than the shots"),
        ({"k_shot": "0"}, "k_shot='0' must be K"),
        ({"k_shot": "16:task"}, "k_shot='16:task' must be K"),
        ({"k_shot": "x:class"}, "must be K"),
        ({"adapt_steps": 3}, "give --sources too"),
        ({"adapt_epochs": 0.0, "sources": "a/b"}, "adapt_epochs must be above 0"),
        ({"adapt_steps": 0, "sources": "a/b"}, "adapt_steps must be at least 1"),
        ({"holdout": 1.0}, "holdout, a share of the training rows, must be below 1, got 1.0"),
        ({"holdout": -0.1}, "holdout, a share of the training rows, must be at least 0, got -0.1"),
        ({"held_out": 0.5}, "must be below 0.5, got 0.5"),
        ({"warmup": 1.0}, "warmup, a share of the steps, must be below 1"),
        ({"warmup": -0.1}, "must be at least 0"),
        ({"learning_rate": 1e3}, "learning_rate must be below 100, got 1000.0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"epochs": 1e7}, "epochs must be below 1e6, got 10000000.0"),
        ({"epochs": -1.0}, "epochs must be above 0, got -1.0"),
        ({"max_length": 7}, "max_length must be at least 8, got 7"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(words: dict[str, object], message: str):
    with pytest.raises(RequestError, match=message):
        made(**words)


def test_tables_show_the_name_and_split_by_what_is_compared():
    named, same, other = made(name="peml_holdout"), replace(made(name="peml_holdout"), name="mine"), made()
    records = [done(cell("lora", protocol=named), 60.0, 20.0), done(cell("dora", protocol=same), 61.0, 21.0)]
    (table,) = study_of(records).tables
    assert len(table.rows) == 2 and table.protocol.label.endswith(f"({named.hash()})")
    assert "scored on training rows kept from training" in table.title
    two = study_of([*records, done(cell("lora", protocol=other), 62.0, 22.0)]).tables
    assert len(two) == 2 and all("name" not in table.differs and "holdout" in table.differs for table in two)


def test_targets_are_the_columns_of_a_table_and_sources_are_in_its_title():
    protocol = made(sources="glue/sst2,glue/mnli")
    of = cell("lora", tasks=("glue/sst2", "glue/mnli", "glue/rte"), protocol=protocol)
    assert of.scored == ("glue/rte",)
    scored = replace(done(replace(of, tasks=of.scored), 60.0), cell=of)
    (table,) = study_of([scored]).tables
    assert table.tasks == ("glue/rte",) and not any("no score" in note for note in table.notes)
    assert table.rows[0].average is not None and table.rows[0].average.scores.mean == 60.0
    assert "glue/rte on demo, after training on glue/sst2, glue/mnli" in table.title


def test_tuning_under_a_protocol_leaves_its_evaluation_rows_alone_and_prints_its_name():
    words = TuningOptions(
        method="lora", tasks="glue/rte", budget="quick", protocol={"name": "peml_holdout", "max_length": 64}
    )
    tuning = make_tuning(words)
    trial = tuning.template.protocol
    assert (trial.holdout, trial.eval_from_train, trial.epochs, trial.max_length) == (0.1, 0.25, 1.0, 64)
    command = tuning.run_command({"rank": 4}, search=Path("found.json"))
    assert "--protocol peml_holdout" in command and "--name" not in command and "--max-length 64" in command
