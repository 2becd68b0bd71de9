"""Scores of LoRA by peft and Hugging Face's Trainer, scored by lm-eval's own model class, beside the records of a run.

    python benchmarks/plain_peft.py runs/real --method lora

For each record of the method in the folder, the same backbone, training rows, rank, alpha, dropout, learning rate,
schedule, steps, batch size and seed; the Trainer draws its own batches, pads them, and keeps the last state. The two
share no code of training or scoring, so their scores should agree within the noise of seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from loops import as_examples, padded

from mtlbench.api.cell import Cell
from mtlbench.backbones.machine import axis_seed
from mtlbench.cells.bench import Bench
from mtlbench.data.lm_task import choose_rows, quiet_lm_eval
from mtlbench.planning.settings import build as build_method
from mtlbench.store import RunFolder
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.splits import carve


def scores_of_peft(cell: Cell, bench: Bench) -> dict[str, float]:
    """Train and score as the cell says, in percent: full task name to the mean of its metrics."""
    backbone = bench.backbone(cell)
    prepared = bench.prepared(cell, backbone)
    seed = axis_seed(cell.seed, "split")
    rows = carve(prepared.rows, held_out=cell.protocol.held_out, seed=seed).train
    torch.manual_seed(cell.seed)
    model = lora(backbone.fresh(), cell)
    train(model, rows, cell, autocast=bench.dtypes(cell)[1])
    return score(model, backbone, prepared, cell)


def lora(base: Any, cell: Cell) -> Any:
    """peft's LoRA with the settings of the cell, its matrices in float32."""
    from peft import LoraConfig, get_peft_model

    ours: Any = build_method(cell.method, cell.settings)
    config = LoraConfig(r=ours.rank, lora_alpha=ours.alpha, lora_dropout=ours.dropout, target_modules="all-linear")
    return get_peft_model(base, config)


def train(model: Any, rows: Sequence[TokenRow], cell: Cell, *, autocast: torch.dtype | None) -> None:
    """The Trainer as it comes, with random batches."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    protocol = cell.protocol
    own = build_method(cell.method, cell.settings).learning_rate
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=protocol.batch_size,
            max_steps=protocol.steps or -1,
            num_train_epochs=protocol.epochs,
            learning_rate=protocol.learning_rate if own is None else own,
            lr_scheduler_type=protocol.schedule,
            warmup_steps=protocol.warmup,
            weight_decay=protocol.weight_decay,
            max_grad_norm=protocol.clip,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=autocast is torch.bfloat16,
            seed=cell.seed,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=as_examples(rows), data_collator=padded)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def score(model: Any, backbone: Any, prepared: Any, cell: Cell) -> dict[str, float]:
    """By lm-eval's HFLM, one row at a time: padding plays no part."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    rows = {n: choose_rows(len(t.validation_docs()), cell.protocol.eval_rows) for n, t in prepared.lm_tasks.items()}
    hflm = HFLM(
        pretrained=model.eval(),
        tokenizer=backbone.tokenizer,
        backend=backbone.architecture,
        batch_size=1,
        max_length=cell.protocol.max_length,
    )
    with quiet_lm_eval():
        results = evaluator.evaluate(
            lm=hflm,
            task_dict={"tasks": dict(prepared.lm_tasks), "groups": {}},
            samples=None if cell.protocol.eval_rows is None else rows,
            bootstrap_iters=0,
        )["results"]
    found = {}
    for name, task in prepared.tasks.items():
        values = [
            results[name][key] for metric in task.metrics for key in results[name] if key.startswith(f"{metric},")
        ]
        found[name] = 100 * sum(values) / len(values)
    return found


def mean(scores: Mapping[str, float]) -> float:
    """Over tasks."""
    return sum(scores.values()) / len(scores)


def line(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """A row of the table: mean and standard deviation over seeds, of each task and of the average."""
    columns = [[run[task] for run in runs] for task in runs[0]] + [[mean(run) for run in runs]]
    cells = [torch.tensor(column, dtype=torch.float64) for column in columns]
    texts = [f"{c.mean():.1f} ± {c.std():.1f}" if len(c) > 1 else f"{c.mean():.1f}" for c in cells]
    return "| " + " | ".join([name, *texts]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("--method", default="lora", help="the row, as its table names it; default: lora")
    parser.add_argument("--data", help="where its tasks were read from, if not from the demo")
    parser.add_argument("--model", help="where its backbone is now, if it was moved")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="scores found before are read from here, new ones are added")
    given = parser.parse_args()
    records = [
        r for r in RunFolder(given.folder).records().values() if r.status == "ok" and r.cell.variant == given.method
    ]
    if not records:
        parser.error(f"{given.folder} has no finished cell of {given.method!r}")
    bench = Bench(
        device="auto",
        threads=given.threads,
        data=given.data or "demo",
        places=lambda cell: [given.model or cell.model],
    )
    found: dict[str, dict[str, float]] = (
        json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    )
    ours: list[Mapping[str, float]] = []
    for record in sorted(records, key=lambda record: record.cell.seed):
        ours.append({name: task.score for name, task in record.scores.items()})
        if record.key not in found:
            found[record.key] = scores_of_peft(record.cell, bench)
        print(f"seed {record.cell.seed}: ours {mean(ours[-1]):.1f}, peft {mean(found[record.key]):.1f}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1))
    print("\n| | " + " | ".join([*ours[0], "average"]) + " |" + "\n|---" + "|---:" * (len(ours[0]) + 1) + "|")
    print(line(given.method, ours))
    print(line("peft, Trainer", [found[record.key] for record in sorted(records, key=lambda r: r.cell.seed)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
