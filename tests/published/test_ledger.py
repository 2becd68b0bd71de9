"""The ledger of published tables: what a file must hold, and that ours holds the papers' tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from record_builder import PROTOCOL, cell, done

from mtlbench.errors import DataError, RequestError
from mtlbench.planning.plan import resolve_tasks
from mtlbench.planning.presets import open_preset
from mtlbench.planning.settings import read_settings, split_methods
from mtlbench.plugins import carried, load_method, offers
from mtlbench.published.ledger import papers, papers_named, tables_named
from mtlbench.published.reading import read_paper
from mtlbench.published.versus import compared, differences
from mtlbench.results.study import study_of

SEED = Path(__file__).parents[3] / "shared" / "published" / "paper_tables.json"


CLAIM = {"what": "x", "where": "y", "value": "1", "follows": "share", "of": ["1.3M", "7B"]}


def paper_file(folder: Path, **changes) -> Path:
    """A small valid paper with ``changes`` at the top, in the table (``table_``), its column or its row."""
    column = {"name": "RTE", "metric": "accuracy", "task": "glue/rte"}
    row = {"name": "LoRA", "method": "lora", "values": [0.9], "average": 0.9}
    table = {"name": "table-1", "caption": "c", "unit": "fraction", "decimals": 3, "backbone": "T5"}
    parts = {"column": column, "row": row, "table": table, "paper": {}}
    for name, value in changes.items():
        part, _, key = name.partition("_")
        if value is None:
            parts[part].pop(key)
        else:
            parts[part][key] = value
    body = {"schema": 1, "paper": "mine", "title": "t", "source": "s", **parts["paper"]}
    body["tables"] = [{"columns": [column], "rows": [row], **table}]
    path = folder / "mine.json"
    path.write_text(json.dumps(body))
    return path


def test_the_ledger_holds_every_table_of_the_seed_papers():
    found = papers()
    assert [len(found[name].tables) for name in ("peml", "ta_lora")] == [11, 5]
    assert tables_named("peml/table-2")[0].rows[-1].values == (0.698, 0.964, 0.912, 0.967, 0.928, 0.912, 0.971, 0.935)


@pytest.mark.skipif(not SEED.exists(), reason="the tables as handed over are not here")
def test_every_number_is_the_one_that_was_handed_over():
    def numbers(values):
        return [v for v in values if v is not None]

    theirs = [
        numbers([*r["values"], r["stated_avg"]]) for t in json.loads(SEED.read_text())["tables"] for r in t["rows"]
    ]
    ours = [numbers([*r.values, r.average]) for p in papers().values() for t in p.tables for r in t.rows]
    assert ours == theirs


def test_methods_and_tasks_that_the_ledger_names_exist():
    for paper in papers().values():
        for table in paper.tables:
            for column in table.columns:
                if column.task:
                    resolve_tasks(column.task)
                    checked = column.metric in ("accuracy", "unknown") and paper.name == "peml"
                    assert not checked or column.task in paper.splits
            for row in table.rows:
                for member in (row.method or "").partition("[")[0].split("+"):
                    if member in offers("methods"):
                        load_method(member)
                    else:
                        assert member == "", f"{table.full_name}: {member}"


def test_a_table_is_found_by_its_presets_name_and_by_the_papers_own_number():
    assert [table.full_name for table in tables_named("ta_lora/table-1")] == ["ta_lora/table-1-a", "ta_lora/table-1-b"]
    assert tables_named("ta_lora/table-i-b") == tables_named("ta_lora/table-1")[1:]
    (four,) = tables_named("peml/table-IV")
    assert four.name == "table-4" and len(tables_named("peml/table-1")) == 1
    known = carried("presets", "peml/?")[1] | carried("presets", "ta_lora/?")[1]
    named = sorted(name for name in known if name.partition("/")[0] in ("peml", "ta_lora") and "/table-" in name)
    assert len(named) > 10 and all(tables_named(name) for name in named)


def test_rows_of_ta_loras_ablation_are_those_of_its_preset():
    (part, *_) = open_preset("ta_lora/table-3", {}).parts
    wanted = {
        cell(method, settings=read_settings(method, words)).variant for method, words in split_methods(part["methods"])
    }
    ours = {row.method for table in tables_named("ta_lora/table-3") for row in table.rows}
    assert ours == wanted and len(wanted) == 4


@pytest.mark.parametrize("name", ["peml/table-4", "peml/table-9"])
def test_moe_lora_is_routed_by_token_in_ledger_and_preset_alike(name):
    opened = open_preset(name, {})
    (part,), (table,) = opened.parts, tables_named(name)
    in_preset = {method for method, _ in split_methods(part["methods"])}
    assert {row.method for row in table.rows} == in_preset
    (row,) = [row for row in table.rows if row.name == "MOE-LoRA"]
    assert row.method == "molora" and load_method("molora").with_settings({}).settings()["gate"] == "token"
    assert any("MOE-LoRA" in note for note in table.notes) and any("molora" in note for note in opened.notes)


def test_a_paper_is_one_file(tmp_path):
    path = paper_file(tmp_path)
    assert tables_named(f"{path}/table-1")[0].rows[0].values == (0.9,)
    assert list(papers_named(str(path))) == ["mine"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_values": [0.9, 0.8]}, r"row 1 \(LoRA\): 2 values for 1 columns"),
        ({"row_values": [90.0]}, r"90.0 is no fraction; numbers go from -1 to 1"),
        ({"row_values": [True]}, "True is no fraction"),
        ({"row_average": "0.9"}, "'average' must be a number"),
        ({"table_unit": "percents"}, "Did you mean 'percent'"),
        ({"column_metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"column_taks": "x"}, "'taks' is unknown. Did you mean 'task'"),
        ({"table_backbone": None}, "no backbone"),
        ({"table_decimals": 1.5}, "'decimals' must be a whole number"),
        ({"row_name": None}, "'name' is missing"),
        ({"paper_schema": 2}, "schema 2 is unknown"),
        ({"paper_paper": "a/b"}, "letters, digits"),
        ({"paper_splits": {"glue/rte": {"validation": 0}}}, "numbers of rows"),
        ({"paper_notes": "x"}, "'notes' must be a JSON list"),
        ({"table_train_rows": 0}, "'train_rows' must be at least 1, got 0"),
        ({"paper_claims": [{"what": "x", "where": "y"}]}, "claim 1: 'value' is missing"),
        ({"paper_claims": [CLAIM | {"follows": "shaer"}]}, "Did you mean 'share'"),
        ({"paper_claims": [CLAIM | {"of": ["1.3M"]}]}, "a share cannot be computed of"),
        ({"paper_claims": [CLAIM | {"of": ["1.3M", "0"]}]}, "a share cannot be computed of"),
        ({"paper_claims": [CLAIM | {"of": ["1.3 M", "7B"]}]}, "'1.3 M' is no number as printed"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        read_paper(paper_file(tmp_path, **changes))
    assert "mine.json" in str(error.value)


def test_unknown_names_give_the_nearest():
    with pytest.raises(RequestError, match="Did you mean 'table-2'"):
        tables_named("peml/table2")
    with pytest.raises(RequestError, match="Did you mean 'peml'"):
        papers_named("pemll")
    with pytest.raises(RequestError, match="names no table"):
        tables_named("peml")


def test_numbers_beside_the_tables_are_in_the_ledger():
    claims = {(paper.name, claim.value, claim.unit) for paper in papers().values() for claim in paper.claims}
    assert claims >= {
        ("peml", "400", "tokens/s"), ("peml", "208", "tokens/s"), ("peml", "13.1", "ms"), ("peml", "1,320", "ms"),
        ("peml", "6.67", "%"), ("peml", "10.75", "%"), ("ta_lora", "0.1857", "%"), ("ta_lora", "13.6", "%"),
    }  # fmt: skip


def test_a_column_is_compared_only_where_its_metric_is_known_to_be_ours():
    records = [done(cell(seed=s, tasks=("glue/rte", "glue/sst2")), 90.0 + s, 93.0) for s in (0, 1)]
    (table,) = study_of(records).tables
    (unknown,), (known,) = tables_named("peml/table-1"), tables_named("peml/table-2")
    assert list(compared(unknown, table)) == []
    assert any("the metric of SST2, RTE, so they are not compared" in line for line in differences(unknown, table))
    assert [(one.column, one.paper) for one in compared(known, table)] == [("RTE", 91.7), ("SST2", 97.1)]


def test_a_run_on_as_many_examples_as_the_paper_differs_in_nothing_there():
    (few,) = tables_named("peml/table-7")

    def told(train_rows):
        protocol = replace(PROTOCOL, train_rows=train_rows)
        (table,) = study_of([done(cell(protocol=protocol), 60.0, 20.0)]).tables
        return [line for line in differences(few, table) if "trained on" in line]

    assert told(500) == []
    assert told(None) == ["theirs are trained on 500 examples of each task"]
    assert told(100) == [
        "ours are trained on at most 100 examples per task", "theirs are trained on 500 examples of each task",
    ]  # fmt: skip


def test_printed_numbers_keep_their_digits():
    (table,) = tables_named("peml/table-3")
    assert [table.printed(v) for v in (0.75, 0.9317, None)] == ["0.750", "0.9317", "-"]
    assert math.isclose(table.percent(0.75), 75)


def test_the_commands_load_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from mtlbench.cli import cli\n"
        "for words in (['published', 'list'], ['published', 'audit'], ['published', 'show', 'peml/table-10']):\n"
        "    done = CliRunner().invoke(cli, words); assert done.exit_code == 0, done.output; print(done.output)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "peml/table-4   SuperGLUE vs modular LoRA methods" in done.stdout
    assert "LLaMA3-8B" in done.stdout
