"""What comes from others is data: payloads stay inert, names stay text, secrets stay out of everything written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell, undisturbed

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Failure, Record
from mtlbench.backbones.names import BACKBONES, check_model
from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import seal
from mtlbench.plugins import load_report, offers
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder

Make = Callable[[Sequence[Cell]], Bench]
ROOT = Path(__file__).parents[2]
INJECTED = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[x](javascript:alert(1))",
    "\\input{/etc/passwd}",
    "$x$ 50% & #1 _a ^b ~c {d}",
    "![x](http://evil/?q)",
    "*bold* `code`",
    "'; DROP TABLE records; --",
)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.fault("F43")
def test_pickles_in_place_of_anything_are_inert(bench_of: Make, tally: Tally, tmp_path: Path) -> None:
    bench = bench_of([fault_cell(0)])
    bench.complete()
    bench.folder.put_samples(fault_cell(0).key, [{"row": 1}])
    mark = tmp_path / "executed"
    payload = pickle.dumps(Payload(mark))
    for path in [p for p in bench.path.rglob("*") if p.is_file()]:
        path.write_bytes(payload)
        tally.fault()
    for _ in range(2):
        bench.folder.records()
        bench.folder.requests()
        bench.folder.samples(fault_cell(0).key)
        bench.folder.claims()
        bench.folder.problems()
        bench.folder.preflight()
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the payload itself works"


@pytest.mark.fault("F43")
@pytest.mark.slow
def test_a_pickled_adapter_or_backbone_is_refused(tally: Tally, tmp_path: Path) -> None:
    import torch

    from mtlbench.backbones.backbone import load_backbone
    from mtlbench.training.checkpoints.state import saved_extra

    mark = tmp_path / "executed"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(StoreError, match="cannot be read"):
        saved_extra(tmp_path / "adapter")
    shutil.copytree(BACKBONES / "demo", tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    torch.save({"model.embed_tokens.weight": Payload(mark)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights_only|unsupported|cannot be loaded|pickle"):
        load_backbone(str(tmp_path / "model"), dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    tally.fault(2)
    assert not mark.exists()


@pytest.mark.fault("F43")
def test_links_out_of_a_run_folder_are_not_written_through(bench_of: Make, tally: Tally, tmp_path: Path) -> None:
    bench = bench_of([fault_cell(0)])
    key, outside = fault_cell(0).key, tmp_path / "outside"
    outside.write_text("mine")
    for name in ("records", "samples"):
        ending = {"records": "json", "samples": "parquet"}[name]
        (bench.path / name / f"{key}.{ending}").symlink_to(outside)
    (bench.path / "report").mkdir()
    (bench.path / "report" / "report.md").symlink_to(outside)
    assert bench.worker().wait(timeout=60) == 0
    words = [sys.executable, "-m", "mtlbench", "report", str(bench.path)]
    assert subprocess.run(words, capture_output=True, timeout=120, check=False).returncode == 0
    tally.fault(3)
    assert outside.read_text() == "mine"
    tally.results(bench)
    for name in ("steps", "adapters", "logs"):
        link = bench.path / name / "link"
        link.symlink_to(outside)
        tally.fault()
        with pytest.raises(RequestError, match="symbolic link"):
            bench.folder.preflight()
        link.unlink()


@pytest.mark.fault("F43")
def test_no_archive_is_unpacked_and_nothing_is_unpickled_or_evaluated_anywhere() -> None:
    """Names that would be a way in; each use that is harmless is listed with its file."""
    ways = re.compile(
        r"\b(pickle|cPickle|dill|joblib|shelve|marshal|zipfile|tarfile|unpack_archive|torch\.load|yaml\.(?:load|unsafe_load)"
        r"|allow_pickle|os\.system|os\.popen|shell=True|trust_remote_code=True|__import__)\b|(?<![\w.])(?:eval|exec)\("
    )
    found = []
    for family in ("mtlbench", "methods", "tasks", "reports"):
        for path in (ROOT / family).rglob("*.py"):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if ways.search(line.partition("#")[0]):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def hostile(text: str) -> list[Record]:
    """Records whose method, tasks, model, settings and messages are ``text``."""
    protocol = Protocol(data=text, prompts=text)
    cells = [
        Cell(method=text, settings={text: text}, tasks=(f"{text}/{text}", "glue/rte"), model=text, protocol=protocol)
    ]
    cells.append(replace(cells[0], method="fails"))
    good = undisturbed(cells[0])
    scores = {task: next(iter(good.scores.values())) for task in cells[0].tasks}
    failure = Failure(kind="plugin", message=text, next_step=text, frames=(text,))
    return [
        replace(good, scores=scores, notes={text: text}, provenance={"host": text}),
        Record(cell=cells[1], status="failed", failure=failure),
    ]


@pytest.mark.fault("F43")
@pytest.mark.parametrize("text", INJECTED, ids=range(len(INJECTED)))
@pytest.mark.parametrize(
    "report",
    [pytest.param(name, marks=pytest.mark.slow if name == "charts" else ()) for name in sorted(offers("reports"))],
)
def test_names_in_reports_stay_text(tally: Tally, report: str, text: str) -> None:
    study = study_of(hostile(text), title=text, notes=lambda: [text])
    documents = load_report(report).render(study)
    tally.fault()
    assert documents
    for name, content in documents.items():
        assert re.fullmatch(r"[\w.\-]+", name), "no name of a file comes from a record"
        if isinstance(content, bytes):
            continue
        if name.endswith((".html", ".md", ".svg")):
            assert not re.search(r"(?<!\\)<(script>alert|img src=x)", content)
        if name.endswith(".md"):
            assert not re.search(r"(?<!\\)\[x\]\(", content), "no link is made"
            rows = [line for line in content.splitlines() if line.startswith("| ")]
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows[:3]}
            assert len(widths) <= 1, "no column is added"
        if name.endswith(".tex"):
            assert "\\input{/etc" not in content
            assert "$x$ 50% &" not in content


@pytest.mark.fault("F43")
@pytest.mark.parametrize("text", ["one\ntwo", "red\x1b[31m", "back\x08"])
def test_control_characters_in_names_never_reach_a_terminal(bench_of: Make, tally: Tally, text: str) -> None:
    bench = bench_of([fault_cell(0)])
    bench.complete()
    record = next(record for record in hostile(text) if record.status == "ok")
    (bench.path / "records" / f"{record.key}.json").write_bytes(seal(record.to_json()))
    bench.folder.put_request({"from": "elsewhere"}, [record.cell])
    tally.fault(2)
    assert list(bench.folder.records()) == [fault_cell(0).key] and bench.folder.expected() == [fault_cell(0)]
    told = bench.folder.problems()
    assert len(told) == 2 and all("control characters" in line and line.isprintable() for line in told)


@pytest.mark.fault("F45")
@pytest.mark.parametrize("architecture", ["mine", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_model_that_brings_code_runs_none_of_it(tmp_path: Path, tally: Tally, architecture: str) -> None:
    """Of an architecture of its own it is refused at once; of one that transformers has, its own code is not used."""
    shutil.copytree(BACKBONES / "demo", tmp_path / "model")
    path, mark = tmp_path / "model" / "config.json", tmp_path / "executed"
    config = json.loads(path.read_text())
    if architecture == "mine":
        config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    path.write_text(json.dumps(config))
    (tmp_path / "model" / "code.py").write_text(
        f"import os; os.mkdir({str(mark)!r})\nclass Config: pass\nclass Model: pass"
    )
    tally.fault()
    if architecture == "mine":
        with pytest.raises(RequestError, match="runs no code of a model"):
            check_model(str(tmp_path / "model"))
    else:
        check_model(str(tmp_path / "model"))
        code = "import sys, torch; from mtlbench.backbones.backbone import load_backbone\n"
        code += "print(type(load_backbone(sys.argv[1], dtype=torch.float32, attention='sdpa', "
        code += "device=torch.device('cpu')).model).__module__)"
        words = [sys.executable, "-c", code, str(tmp_path / "model")]
        done = subprocess.run(words, capture_output=True, text=True, input="y\n", timeout=240, check=False)
        assert done.stdout.strip().startswith("transformers.models."), done.stderr
    assert not mark.exists()


def test_run_folders_of_other_people_can_be_read(tmp_path: Path) -> None:
    """Reading makes nothing in a folder that has none of the newer parts."""
    bench = Bench(tmp_path / "run", [fault_cell(0)])
    bench.complete()
    for name in ("published", "conflicts", "quarantine"):
        shutil.rmtree(bench.path / name)
    folder = RunFolder(bench.path)
    assert len(folder.records()) == 1 and folder.problems() == []
    assert not (bench.path / "published").exists()
