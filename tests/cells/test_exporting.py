"""`mtlbench export`: what a run trained, as a checkpoint that plain peft loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mtlbench.backbones.names import BACKBONES
from mtlbench.cells.export import trained_record
from mtlbench.cells.rebuild import rebuild
from mtlbench.store import RunFolder

SMALL = ("--tasks", "glue/rte,glue/sst2", "--steps", "3", "--train-rows", "64", "--eval-rows", "8")


def call(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mtlbench", *words], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    done = call("run", "--methods", "base,lora,mtl_lora", *SMALL, "--seeds", "0,1", "--out", "run", cwd=path)
    assert done.returncode == 0, done.stderr
    return path


def logits(model, tasks, routing):
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), routing.of(torch.tensor([tasks])):
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("method", "task"), [("lora", None), ("mtl_lora", "glue/sst2")])
def test_plain_peft_gives_the_logits_of_the_trained_model(folder, method, task):
    words = () if task is None else ("--task", task)
    done = call("export", "run", "--method", method, "--seed", "1", *words, "--to", f"out-{method}", cwd=folder)
    assert done.returncode == 0, done.stderr
    plain = AutoModelForCausalLM.from_pretrained(BACKBONES / "demo", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, folder / f"out-{method}").eval()
    store = RunFolder(folder / "run")
    record = trained_record(store.records().values(), variant=method, seed=1)
    rebuilt = rebuild(record, store.adapter(record.key))
    want = logits(rebuilt.model, 1, rebuilt.setup.routing)
    torch.testing.assert_close(logits(loaded, 1, rebuilt.setup.routing), want, rtol=1e-4, atol=1e-4)
    with loaded.disable_adapter():
        assert (logits(loaded, 1, rebuilt.setup.routing) - want).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "lra"), "Did you mean 'lora'?"),
        (("--method", "lora"), "choose with --seed. Seeds here: 0, 1."),
        (("--method", "lora", "--seed", "5"), "no finished cell with seed 5"),
        (("--method", "base", "--seed", "0"), "trains nothing"),
        (("--method", "mtl_lora", "--seed", "0"), "choose the task"),
        (("--method", "mtl_lora", "--seed", "0", "--task", "glue/rt"), "Did you mean 'glue/rte'?"),
    ],
)
def test_a_wrong_request_is_one_line(folder, words, message):
    done = call("export", "run", *words, "--to", "wrong", cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (folder / "wrong").exists()


def test_nothing_is_overwritten(folder):
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("x")
    done = call("export", "run", "--method", "lora", "--seed", "0", "--to", "full", cwd=folder)
    assert done.returncode == 2 and "not an empty folder" in done.stderr
