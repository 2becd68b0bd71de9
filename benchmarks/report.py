"""Seconds of ``mtlbench report`` on a run folder of 500 cells with 20 tasks, made up here.

    python benchmarks/report.py [--folder DIR] [--seeds 20] [--examples 277] [--steps 200]

The folder holds what a run leaves: records, predictions of every example, step logs with the loss of every task, and
searches of PEML. Its numbers are random: only how long they take to read, test and draw is looked at. ``--folder``
keeps it and uses one that is there already.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Costs, Failure, Record, TaskScore
from mtlbench.store import RunFolder

NAMES = "cola sst2 mrpc stsb qqp mnli qnli rte wnli boolq cb copa multirc record wic wsc axb axg hellaswag winogrande"
TASKS = tuple(f"glue/{name}" for name in NAMES.split())
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("base", {}),
    ("lora_st", {}),
    *(("lora", {"rank": rank}) for rank in (4, 8, 16, 64)),
    ("lora", {"dropout": 0.0}),
    ("lora", {"target": "attention"}),
    *(("multilora", {"rank": rank}) for rank in (4, 8, 16)),
    *(("mtl_lora", {"rank": rank}) for rank in (8, 16, 32)),
    *(("moelora", {"rank": rank}) for rank in (8, 16)),
    *(("peml", {"layers": layers}) for layers in (1, 2, 4, 6, 8)),
    *(("peml", {"layers": layers, "skip": True}) for layers in (1, 2)),
    *(("prefixnas+mtl_lora", {"mtl_lora.rank": rank, "order": "in_turn"}) for rank in (4, 16)),
)
OPERATIONS = tuple(f"{name}-drop{rate}" for name in ("gelu", "leaky_relu", "relu", "tanh") for rate in (0.1, 0.3, 0.5))
REPORTS = ("markdown,csv", "markdown,csv,latex", "markdown,csv,latex,html", "charts")


def make(folder: Path, *, seeds: int, examples: int, steps: int) -> int:
    """Fill a run folder; gives the number of its records."""
    store, generator = RunFolder(folder), np.random.default_rng(0)
    store.preflight()
    made = []
    for method, settings in VARIANTS:
        share = 0.45 if method == "base" else float(generator.normal(0.7, 0.06))
        for seed in range(seeds):
            cell = Cell(
                method=method,
                settings=settings,
                tasks=TASKS,
                model="demo",
                protocol=Protocol(data="demo:5f2c", prompts="lm_eval", steps=1000),
                seed=seed,
                plugins={"mtlbench": metadata.version("mtlbench")},
            )
            if method == "moelora" and seed == 1:
                failure = Failure(kind="oom", message="CUDA out of memory", next_step="Lower --micro-batch.")
                made.append(Record(cell=cell, status="failed", failure=failure))
                continue
            answers = generator.random((len(TASKS), examples)) < np.clip(
                generator.normal(share, 0.05, (len(TASKS), 1)), 0.05, 0.95
            )
            _samples(store.path / "samples" / f"{cell.key}.parquet", answers, generator)
            if method != "base":
                _steps(store.steps_file(cell.key), steps, generator)
            made.append(_record(cell, answers, generator))
    store.put_request({"benchmark": "report"}, [record.cell for record in made])
    for record in made:
        claim = store.claim(record.key)
        assert claim is not None and store.publish(record, claim)
        store.release(claim)
    return len(made)


def _record(cell: Cell, answers: np.ndarray, generator: np.random.Generator) -> Record:
    rank = int(cell.settings.get("rank", 16) or 16)
    means = answers.mean(1).tolist()
    scores = {
        task: TaskScore(score=100 * mean, metrics={"acc": mean}, rows=answers.shape[1], majority=40.0)
        for task, mean in zip(cell.tasks, means, strict=True)
    }
    trained = cell.method != "base"
    costs = Costs(
        trainable_parameters=10_000 * rank if trained else 0,
        backbone_parameters=1_100_000,
        train_seconds=60 + rank * generator.uniform(1, 1.2) if trained else 0.0,
        eval_seconds=4.0,
        total_seconds=70.0 + rank,
        tokens_per_second=9000 - rank * 40 + generator.uniform(-50, 50) if trained else 0.0,
        peak_memory=int((600 + rank * 8 + generator.uniform(0, 10)) * 2**20),
        peak_memory_kind="process",
    )
    notes: dict[str, Any] = {"stop_losses": [[n, 3 * math.exp(-n / 300) + 0.5] for n in (250, 500, 750, 1000)]}
    if cell.method == "peml":
        notes["prefix_nas"] = _search(int(cell.settings["layers"] or 1), generator)
    provenance = {"device": "cpu", "host": "node", "versions": {"torch": "2"}, "threads": 1}
    return Record(
        cell=cell,
        status="ok",
        scores=scores,
        costs=costs,
        notes=notes,
        guards={"trained": True, "frozen_unchanged": True},
        provenance=provenance,
    )


def _search(layers: int, generator: np.random.Generator) -> dict[str, Any]:
    operations = [list(OPERATIONS)] * layers
    cuts = []
    for step, keep in ((300, 6), (450, 3), (600, 1)):
        mixtures = [
            dict(zip(layer, generator.dirichlet(np.ones(len(layer))).tolist(), strict=True)) for layer in operations
        ]
        cuts.append({"step": step, "keep": keep, "entropy": 0.9, "mixtures": mixtures})
        operations = [sorted(mixture, key=lambda name: -mixture[name])[:keep] for mixture in mixtures]
    return {"architecture": operations, "trajectory": cuts}


def _samples(path: Path, answers: np.ndarray, generator: np.random.Generator) -> None:
    tasks, examples = answers.shape
    right = answers.ravel()
    columns = {
        "task": np.repeat(TASKS, examples),
        "doc_id": np.tile(np.arange(examples), tasks),
        "doc_hash": [f"{task:032x}{at:032x}" for task in range(tasks) for at in range(examples)],
        "gold": np.repeat("yes", right.size),
        "prediction": np.where(right, "yes", "no"),
        "loglikelihoods": list(generator.normal(-5, 1, (right.size, 2))),
        "correct": right,
        "metric_values": np.where(right, '{"acc": 1.0}', '{"acc": 0.0}'),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _steps(path: Path, steps: int, generator: np.random.Generator) -> None:
    lines = ['{"started": "x"}', '{"total": 1000}']
    for step in range(1, 1001, 1000 // steps):
        loss = 10 * math.exp(-step / 150) + 0.5
        layer = (loss * generator.uniform(0.8, 1.2, len(TASKS))).round(6).tolist()
        lines.append(json.dumps({"step": step, "loss": loss, "tasks": dict(zip(TASKS, layer, strict=True))}))
    path.write_text("\n".join(lines) + "\n")


def seconds(folder: Path, reports: str, *, draws: int) -> tuple[float, float]:
    """Processor and wall-clock seconds of one command, imports and all."""
    command = [sys.executable, "-c", "from mtlbench.cli import main; main()", "report", str(folder)]
    with tempfile.TemporaryDirectory() as target:
        before, began = _spent(), time.perf_counter()
        subprocess.run(
            [*command, "--as", reports, "--bootstrap", str(draws), "--to", target],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        return _spent() - before, time.perf_counter() - began


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--examples", type=int, default=277)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reports", nargs="*", default=REPORTS)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as layer:
        folder = words.folder or Path(layer) / "run"
        if not (folder / "records").is_dir():
            count = make(folder, seeds=words.seeds, examples=words.examples, steps=words.steps)
            print(f"{count} records, {len(TASKS)} tasks, {words.examples} examples each, {words.steps} logged steps")
        for reports in words.reports:
            for draws in (0, 1000):
                spent, wall = zip(*(seconds(folder, reports, draws=draws) for _ in range(words.rounds)), strict=True)
                seconds = f"{statistics.median(wall):.1f} s ({min(wall):.1f} to {max(wall):.1f})"
                print(f"--as {reports} --bootstrap {draws}: {seconds}, {min(spent):.1f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
