"""From the hub into a bundle, with the revisions of what was taken; the hub is one of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from toy_hub import COMMITS, ToyHub

from mtlbench.backbones.names import BACKBONES
from mtlbench.data import manifest
from mtlbench.plugins import load_suite

CARD = """---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
---
"""
LOOK = """
import json
from mtlbench.data.choose import open_source
from mtlbench.planning.plan import resolve_tasks
tasks, suites = resolve_tasks("glue/rte")
source = open_source("hub", suites=suites)
tasks = list(tasks.values())
rows = source.splits(tasks[0])
print(json.dumps([source.identity(tasks), source.revisions(tasks), {k: len(v) for k, v in rows.items()}]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyHub]:
    root = tmp_path_factory.mktemp("hub")
    glue = root / "datasets" / "nyu-mll" / "glue"
    (glue / "rte").mkdir(parents=True)
    (glue / "README.md").write_text(CARD)
    suite = load_suite("glue")
    assert suite.demo is not None
    for split in ("train", "validation"):
        table = pyarrow.Table.from_pylist(suite.demo("nyu-mll/glue", "rte", split))
        parquet.write_table(table, glue / "rte" / f"{split}-00000-of-00001.parquet")
    model = root / "models" / "org" / "tiny"
    shutil.copytree(BACKBONES / "demo", model)
    (model / "pytorch_model.bin").write_bytes(b"older weights")
    (model / "modeling.py").write_text("raise SystemExit")
    with ToyHub(root) as running:
        yield running


def environment(home: Path, endpoint: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


def run(words: list[str], *, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    env = environment(home, endpoint)
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=300)


def test_data_and_model_are_bundled_with_their_revisions(hub: ToyHub, tmp_path: Path):
    words = ["-m", "mtlbench", "bundle", "make", "--tasks", "glue/rte", "--model", "org/tiny", str(tmp_path / "b")]
    done = run(words, home=tmp_path / "hf", endpoint=hub.url)
    assert done.returncode == 0, done.stderr + "\n".join(hub.asked)
    held = manifest.read(tmp_path / "b")
    assert held.datasets == {"nyu-mll/glue": COMMITS["datasets"]} and held.models == {"org/tiny": COMMITS["models"]}
    assert held.source == "hub" and "data/nyu-mll/glue/rte/train.parquet" in held.files
    model = {Path(name).name for name in held.files if name.startswith("models/org/tiny/")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model
    assert not {"pytorch_model.bin", "modeling.py"} & model, "one kind of weights, and no code"
    assert not list(manifest.problems(tmp_path / "b"))


def test_what_was_cached_is_the_same_data_without_the_hub(hub: ToyHub, tmp_path: Path):
    online = run(["-c", LOOK], home=tmp_path / "hf", endpoint=hub.url)
    assert online.returncode == 0, online.stderr + "\n".join(hub.asked)
    identity, revisions, rows = json.loads(online.stdout)
    assert identity.startswith("hub:") and revisions == {"nyu-mll/glue": COMMITS["datasets"]}
    assert rows["train"] > 100 and rows["validation"] > 50
    offline = run(["-c", LOOK], home=tmp_path / "hf", endpoint="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout) == [identity, revisions, rows]
