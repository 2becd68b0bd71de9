"""The Python interface: the words and sentences of the command line, frames that agree with the tables, adapters."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import mtlbench
from mtlbench.cli import cli
from mtlbench.commands.plan import plan as plan_command
from mtlbench.commands.run import run as run_command
from mtlbench.errors import MtlbenchError, RequestError
from mtlbench.interface.words import options_of, words_of
from mtlbench.store import RunFolder

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The namespace of the tutorial after all its cells, with what each showed under ``shown``."""
    folder = tmp_path_factory.mktemp("notebook")
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                *lines, last = _statements("".join(cell["source"]))
                exec("\n".join(lines), names)
                shown.append(_value(last, names))
    return {**names, "shown": shown, "folder": folder / "tutorial"}


def _statements(source: str) -> list[str]:
    import ast

    return [ast.unparse(statement) for statement in ast.parse(source).body]


def _value(statement: str, names: dict[str, Any]) -> Any:
    """What a notebook would show for the last statement of a cell."""
    try:
        code = compile(statement, "cell", "eval")
    except SyntaxError:
        exec(statement, names)
        return None
    return eval(code, names)


# The words


def test_every_option_of_the_commands_is_a_keyword_that_completes() -> None:
    for function, command, without in (
        (mtlbench.run, run_command, ()),
        (mtlbench.plan, plan_command, ("json", "parameters", "forecast")),
    ):
        known = set(words_of(command, without=without))
        assert known <= set(inspect.signature(function).parameters)
        assert len(known) == len([o for o in command.params if max(o.opts, key=len).lstrip("-") not in without])
        assert all(f"    {name}: " in (function.__doc__ or "") for name in known)
    assert {"batch_size", "as_", "protocol", "silence", "threads"} <= set(words_of(run_command))
    assert {"run", "plan", "load", "load_adapter", "check", "published_tables", "Study"} <= set(dir(mtlbench))


def test_keywords_become_what_the_command_line_makes_of_its_text() -> None:
    texts = ["--methods", "lora,peml", "--seeds", "0,1", "--tasks", "glue", "--steps", "5,9", "--no-checkpointing"]
    texts += ["--held-out", "0.2", "--out", "here", "--silence", "9", "--shard", "--as", "csv"]
    on_terminal = run_command.make_context("run", texts).params
    words = {"methods": ["lora", "peml"], "seeds": range(2), "tasks": "glue", "steps": [5, 9], "checkpointing": False}
    words |= {"held_out": 0.2, "out": Path("here"), "silence": 9, "shard": True, "as_": "csv"}
    assert options_of(run_command, words) == on_terminal


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, mtlbench; dir(mtlbench)\n"
        "heavy = {'torch', 'pandas', 'numpy', 'click', 'matplotlib', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "mtlbench.plan(methods='peml,lora', tasks='glue')\n"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ({"methods": "lorra", "tasks": "glue"}, ["--methods", "lorra", "--tasks", "glue"]),
        ({"tasks": "glue"}, ["--tasks", "glue"]),
        ({"methods": "lora", "tasks": "rte"}, ["--methods", "lora", "--tasks", "rte"]),
        (
            {"methods": "lora", "tasks": "glue", "seeds": "4-2"},
            ["--methods", "lora", "--tasks", "glue", "--seeds", "4-2"],
        ),
        ({"methods": "lora", "tasks": "glue", "steps": 0}, ["--methods", "lora", "--tasks", "glue", "--steps", "0"]),
        (
            {"methods": "lora", "tasks": "glue", "as_": "chart"},
            ["--methods", "lora", "--tasks", "glue", "--as", "chart"],
        ),
    ],
)
def test_a_wrong_request_is_an_exception_with_the_sentence_of_the_command_line(
    tmp_path: Path, words: dict[str, Any], texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MtlbenchError) as in_python:
        mtlbench.run(**words, out=tmp_path / "out")
    assert capfd.readouterr() == ("", "") and not (tmp_path / "out").exists()
    on_terminal = CliRunner().invoke(cli, ["run", *texts, "--out", str(tmp_path / "out")]).exception
    assert str(in_python.value) == str(on_terminal) and type(in_python.value) is type(on_terminal)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"stps": 3}, "run has no option 'stps'. Did you mean 'steps'"),
        ({"batch_size": 2.5}, "--batch-size must be a whole number, got 2.5"),
        ({"batch_size": True}, "--batch-size must be a number, got True"),
        ({"steps": 2.5}, "--steps: '2.5' is not a valid integer"),
        ({"steps": True}, "--steps must be text, got True"),
        ({"steps": "two"}, "--steps: 'two' is not a valid integer"),
        ({"shard": "yes"}, "--shard must be True or False, got 'yes'"),
        ({"device": "tpu"}, "--device: 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ({"workers": -1}, "--workers: -1"),
    ],
)
def test_a_value_that_no_text_could_be_is_refused_by_name(words: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as error:
        mtlbench.run(methods="lora", tasks="glue/rte", **words)
    assert message in str(error.value)


# The tutorial and what it made


def test_the_tutorial_runs_and_shows_tables_and_a_chart(executed: dict[str, Any]) -> None:
    shown = executed["shown"]
    assert shown[1].counts["missing"] == 6 and "mtl_lora" in shown[1]._repr_html_()
    assert any(isinstance(value, mtlbench.Study) and "<b>" in value._repr_html_() for value in shown)
    assert any(getattr(value, "_repr_png_", lambda: b"")().startswith(b"\x89PNG") for value in shown)
    assert sum(isinstance(value, pd.DataFrame | pd.Series) and len(value) > 0 for value in shown) == 6
    logits, tasks = shown[-2]
    assert logits[0] == 1 and tasks == ("glue/rte", "glue/sst2")
    assert "base" not in str(next(value for value in shown if hasattr(value, "lines")))


def test_the_same_call_again_runs_nothing_and_says_so(
    executed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(executed["folder"].parent)
    before = {path: path.stat().st_mtime_ns for path in (executed["folder"] / "records").iterdir()}
    study = mtlbench.run(**executed["request"])
    assert {path: path.stat().st_mtime_ns for path in (executed["folder"] / "records").iterdir()} == before
    out, err = capfd.readouterr()
    assert out == "" and err == "All of the 6 cells had records already.\n"
    assert study.scores().equals(executed["study"].scores())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mtlbench.run(**executed["request"], progress=False)
    assert [str(warning.message) for warning in caught] == ["All of the 6 cells had records already."]
    assert capfd.readouterr() == ("", "")


def test_frames_say_what_the_tables_say(executed: dict[str, Any]) -> None:
    study, folder = executed["study"], RunFolder(executed["folder"])
    (table,) = study.tables
    scores = study.scores()
    assert len(scores) == 12 and scores["score"].notna().all()
    for row in table.rows:
        mine = scores[scores["label"] == row.label]
        assert mine.groupby("seed")["score"].mean().mean() == pytest.approx(row.average.scores.mean)
    samples = study.samples()
    accuracy = 100 * samples.groupby(["key", "task"])["correct"].mean()
    assert accuracy.to_dict() == pytest.approx(scores.set_index(["key", "task"])["score"].to_dict())
    losses = study.losses()
    for record in folder.records().values():
        steps = [line for line in folder.steps(record.key) if "step" in line]
        mine = losses[(losses["key"] == record.key) & (losses["task"] == "all")]
        assert mine["loss"].tolist() == [line["loss"] for line in steps]
    assert set(losses["task"]) == {"all", "glue/rte", "glue/sst2"}
    costs = study.costs().set_index("key")
    assert {key: int(n) for key, n in costs["trainable_parameters"].items()} == {
        key: record.costs.trainable_parameters for key, record in folder.records().items()
    }
    points = study.differences().set_index(["label", "task"])["points"]
    of_row = next(row for row in table.rows if row.label == "mtl_lora")
    assert points["mtl_lora", "average"] == pytest.approx(of_row.comparison.average.points)
    assert repr(study).count("\n") == 0 and len(repr(study)) < 200 and str(study).count("mtl_lora") == 1


def test_what_a_study_does_not_have_is_refused_by_name(executed: dict[str, Any]) -> None:
    study = executed["study"]
    for call, message in (
        (lambda: study.chart("difference"), "Did you mean 'differences'"),
        (lambda: study.table(2), "There is no table 2"),
        (lambda: study.samples(variant="lor"), "Did you mean 'lora'"),
        (lambda: study.samples(task="glue/rt"), "Did you mean 'glue/rte'"),
        (lambda: study.losses(seed=7), "the seed 7"),
        (lambda: mtlbench.load(executed["folder"].parent), "no run folder"),
        (lambda: mtlbench.load(executed["folder"], exclude=["lorra"]), "Did you mean 'lora'"),
    ):
        with pytest.raises(RequestError) as error:
            call()
        assert message in str(error.value)


def test_an_adapter_is_the_trained_model_and_is_told_its_task(executed: dict[str, Any], tmp_path: Path) -> None:
    import torch

    from mtlbench.cells.rebuild import rebuild

    folder, ids = executed["folder"], torch.arange(5, 25)[None]
    adapter = mtlbench.load_adapter(folder, "mtl_lora", seed=1)
    rebuilt = rebuild(adapter.record, RunFolder(folder).adapter(adapter.record.key))
    logits = {}
    for number, task in enumerate(adapter.tasks):
        logits[task] = adapter(task=task, input_ids=ids).logits
        with torch.no_grad(), rebuilt.setup.routing.of(torch.tensor([number])):
            expected = rebuilt.model(input_ids=ids).logits
        assert torch.allclose(logits[task], expected, atol=1e-4) and not logits[task].requires_grad
    assert not torch.allclose(*logits.values(), atol=1e-4), "tasks are routed"
    text = adapter.generate(["the cat", "a dog"], task="glue/rte", max_new_tokens=3)
    assert len(text) == 2 and all(isinstance(one, str) for one in text)
    words = ["--method", "mtl_lora", "--seed", "1", "--form", "mtlbench", "--to", str(tmp_path / "exported")]
    assert CliRunner().invoke(cli, ["export", str(folder), *words]).exit_code == 0
    again = mtlbench.load_adapter(tmp_path / "exported")
    assert torch.equal(again(task="glue/sst2", input_ids=ids).logits, logits["glue/sst2"])
    for call, message in (
        (lambda: adapter(input_ids=ids), "routes by task: say which with task="),
        (lambda: adapter.generate("x", task="glue/rt"), "Did you mean 'glue/rte'"),
        (lambda: mtlbench.load_adapter(folder), "Say which method"),
        (lambda: mtlbench.load_adapter(folder, "lora"), "Seeds here: 0, 1"),
        (lambda: mtlbench.load_adapter(folder, "base", seed=0), "left no adapter"),
    ):
        with pytest.raises(RequestError) as error:
            call()
        assert message in str(error.value)


def test_failed_cells_are_rows_and_a_warning(executed: dict[str, Any], tmp_path: Path, installed: Any) -> None:
    site = tmp_path / "site"
    installed(Path("mtlbench-example"), site)
    module = site / "mtlbench_example.py"
    module.write_text(module.read_text().replace("import torch  #", "raise ValueError('boom')  #"))
    code = (
        "import warnings, mtlbench\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    study = mtlbench.run(methods='scaled_rows,base', tasks='glue/rte', steps=2, train_rows=16, eval_rows=8,\n"
        "                         workers=1, out='out', progress=False, as_='csv')\n"
        "assert any('1 failed' in str(warning.message) for warning in caught), caught\n"
        "scores = study.scores().set_index('label')\n"
        "assert scores['status'].to_dict() == {'scaled_rows': 'failed', 'base': 'ok'}\n"
        "assert 'boom' in scores['reason']['scaled_rows']\n"
    )
    import os

    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and (tmp_path / "out" / "report" / "scores.csv").is_file()


def test_several_folders_are_one_study(executed: dict[str, Any], tmp_path: Path) -> None:
    """Seeds of two machines: one table, and files found where they are."""
    folder, parts = executed["folder"], []
    for seed in (0, 1):
        parts.append(tmp_path / f"machine-{seed}")
        shutil.copytree(folder, parts[-1])
        shutil.rmtree(parts[-1] / "requests")
        (parts[-1] / "requests").mkdir()
        for key, record in RunFolder(folder).records().items():
            if record.cell.seed != seed:
                for path in parts[-1].rglob(f"{key}*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    one, both = mtlbench.load(folder), mtlbench.load(*parts)
    assert both.scores().equals(one.scores()) and both.samples().equals(one.samples())
    assert both.losses().equals(one.losses()) and str(both) == str(one)
    with_copy = mtlbench.load(folder, parts[1])
    assert with_copy.scores().equals(one.scores())
    assert with_copy.notes[0] == "3 cells found in several of the folders: each counts once."


def test_checks_and_published_tables_are_frames() -> None:
    found = mtlbench.check("glue/rte")
    assert set(found["outcome"]) == {"ok"} and set(found["on"]) == {"glue/rte"} and len(found) >= 6
    papers = mtlbench.published_tables("peml/table-2")
    (row,) = papers[(papers["row"] == "LoRA-MT") & (papers["task"] == "glue/rte")].to_dict("records")
    assert row["value"] == 91.7 and row["method"] == "lora" and row["metric"] == "accuracy"
    assert len(mtlbench.published_tables()) > len(mtlbench.published_tables("peml")) > len(papers)
    for call in (lambda: mtlbench.check("glu"), lambda: mtlbench.published_tables("peml/table-99")):
        with pytest.raises(MtlbenchError):
            call()
