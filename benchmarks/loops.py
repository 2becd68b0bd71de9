"""The two training loops that are compared, each one pass over the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from backbones import TASKS
from sides import Attached, Side
from torch import Tensor

from mtlbench.api.cell import Protocol
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import Splits

BATCH = 32


@dataclass
class Slots:
    """Token slots counted while training."""

    computed: int = 0
    real: int = 0

    @property
    def per_token(self) -> float:
        return self.computed / self.real


def our_loop(ours: Attached, slots: Slots, *, rows: Sequence[TokenRow], device: torch.device) -> Callable[[], None]:
    """One pass over the rows by our training loop."""

    def run() -> None:
        job = TrainingJob(
            model=ours.side.model,
            method=ours.method,
            splits=Splits(list(rows), [], []),
            protocol=Protocol(epochs=1, batch_size=BATCH, learning_rate=1e-4, evals_per_run=0, dtype="float32"),
            tasks=TASKS,
            routing=ours.setup.routing,
            collator=Collator("causal", 0, None, device),
            seed=0,
        )
        loop = Loop(job)
        loop.run()
        if loop.progress.rows < len(rows):
            raise RuntimeError(f"our loop trained {loop.progress.rows} rows of {len(rows)}")
        slots.computed += loop.progress.padded_tokens
        slots.real += loop.progress.real_tokens

    return run


def trainer_loop(
    model: Any, slots: Slots, *, rows: Sequence[TokenRow], folder: Path, device: torch.device
) -> Callable[[], None]:
    """One pass over the rows by Hugging Face's Trainer, each random batch padded to its longest row."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    examples = as_examples(rows)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.06,
        max_grad_norm=1.0,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        seed=0,
    )

    def collator(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        tensors = padded(batch)
        slots.computed += tensors["input_ids"].numel()
        slots.real += int(tensors["attention_mask"].sum())
        return tensors

    def run() -> None:
        trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        if trainer.train().global_step != -(-len(rows) // BATCH):
            raise RuntimeError("the Trainer did not make one pass")

    return run


def as_examples(rows: Sequence[TokenRow]) -> list[dict[str, Any]]:
    """Rows as the Trainer's data set."""
    return [{"ids": [*row.context, *row.target], "answer": len(row.target)} for row in rows]


def padded(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch as DataCollatorForSeq2Seq makes it: padded on the right to the longest row, labels of -100 elsewhere."""
    longest = max(len(example["ids"]) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, example in enumerate(examples):
        own = torch.tensor(example["ids"])
        ids[i, : len(own)], mask[i, : len(own)] = own, 1
        labels[i, len(own) - example["answer"] : len(own)] = own[-example["answer"] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class TrainerSide(Side):
    """What the Trainer differentiates: the model's own loss on its collator's batch."""

    examples: Sequence[dict[str, Any]]

    def _narrow(self, all_logits: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def loss(self, *, all_logits: bool) -> Tensor:
        device = self.batch.tasks.device
        loss: Tensor = self.model(**{name: tensor.to(device) for name, tensor in padded(self.examples).items()}).loss
        return loss
