"""How long a worker takes from being up to the start of training, in a first and in a second study on the same rows.

    python benchmarks/second_study.py --tasks glue
    python benchmarks/second_study.py --tasks glue/rte --rows 50000

Each study is a process of its own, the token cache is all they share. ``--rows`` makes a folder with that many training
rows in the columns of ``glue/rte``. README.md in this folder says what is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = [f"{a}{b}{c}" for a in "bklmrst" for b in ("a", "ei", "o", "u") for c in ("n", "r", "st", "l", "")]


def one_study(tasks: str, data: str, folder: Path) -> None:
    """Print the seconds of this process, and by the clock, from the worker being up to training being planned."""
    from mtlbench.api.hooks import hookimpl
    from mtlbench.cells.bench import Bench
    from mtlbench.cells.cell import run_cell
    from mtlbench.observers.events import Events
    from mtlbench.planning.plan import make_plan
    from mtlbench.planning.request import Request
    from mtlbench.store import RunFolder

    request = Request(methods="lora", tasks=tasks, data=data, protocol={"steps": 1, "eval_rows": 4})
    (cell,) = make_plan(request).cells
    at: dict[str, float] = {}

    class Watch:
        @hookimpl
        def mtlbench_training_planned(self, cell: Any) -> None:
            at.setdefault("cpu", time.process_time())
            at.setdefault("wall", time.perf_counter())

    where, bench = RunFolder(folder), Bench(device="cpu", threads=1, data=data)
    where.preflight()
    cpu, wall = time.process_time(), time.perf_counter()
    record = run_cell(cell, bench=bench, folder=where, events=Events({"watch": Watch()}))
    if record.status != "ok":
        raise RuntimeError(f"the cell ended as {record.status}: {record.failure}")
    print(json.dumps({"cpu": at["cpu"] - cpu, "wall": at["wall"] - wall}))


def make_rows(folder: Path, count: int) -> None:
    """Parquet files of made-up sentence pairs, about 190 characters each."""
    import pyarrow
    import pyarrow.parquet as parquet

    draw = random.Random(0)
    path = folder / "nyu-mll/glue/rte"
    path.mkdir(parents=True)
    for split, rows in (("train", count), ("validation", 100)):
        table = {
            "sentence1": [f"{split} {i} {' '.join(draw.choices(WORDS, k=30))}" for i in range(rows)],
            "sentence2": [" ".join(draw.choices(WORDS, k=10)) for _ in range(rows)],
            "label": [draw.randint(0, 1) for _ in range(rows)],
        }
        parquet.write_table(pyarrow.table(table), path / f"{split}.parquet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="glue")
    parser.add_argument("--rows", type=int, help="make a folder of so many training rows of glue/rte")
    parser.add_argument("--study", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.study:
        one_study(options.tasks, options.study[0], Path(options.study[1]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        data = "demo"
        if options.rows:
            make_rows(Path(name, "data"), options.rows)
            data = str(Path(name, "data"))
        environment = {**os.environ, "MTLBENCH_CACHE": str(Path(name, "cache")), "OMP_NUM_THREADS": "1"}
        for study in ("first", "second", "third"):
            words = [sys.executable, __file__, "--tasks", options.tasks, "--study", data, str(Path(name, study))]
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            took = json.loads(done.stdout.splitlines()[-1])
            print(f"{study} study: {took['cpu']:.2f} s of the processor, {took['wall']:.2f} s by the clock", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
