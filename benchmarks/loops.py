"""The training loops that are compared, each one pass over the same rows: ours, a bare loop with peft, the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import TASKS
from sides import Attached, Side
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtlbench.api.cell import Protocol
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.splits import Splits

BATCH = 32
RATE = 1e-4


@dataclass
class Slots:
    """Token slots counted while training."""

    computed: int = 0
    real: int = 0

    @property
    def per_token(self) -> float:
        return self.computed / self.real


@dataclass(frozen=True)
class Pass:
    """What every side trains on."""

    rows: Sequence[TokenRow]
    device: torch.device
    batch: int = BATCH
    autocast: torch.dtype | None = None


def our_loop(ours: Attached, slots: Slots, what: Pass) -> Callable[[], None]:
    """One pass over the rows by the loop of `mtlbench run`, with its default: steps drawn from the mixture."""
    dtype = "float32" if what.autocast is None else "bfloat16"

    def run() -> None:
        job = TrainingJob(
            model=ours.side.model,
            method=ours.method,
            splits=Splits(list(what.rows), [], []),
            protocol=Protocol(epochs=1, batch_size=what.batch, learning_rate=RATE, evals_per_run=0, dtype=dtype),
            tasks=TASKS,
            routing=ours.setup.routing,
            collator=Collator("causal", 0, None, what.device),
            seed=0,
            autocast=what.autocast,
        )
        loop = Loop(job)
        loop.run()
        if loop.progress.rows < len(what.rows):
            raise RuntimeError(f"our loop trained {loop.progress.rows} rows of {len(what.rows)}")
        slots.computed += loop.progress.padded_tokens
        slots.real += loop.progress.real_tokens

    return run


def bare_loop(model: Any, slots: Slots, what: Pass, *, by_length: bool) -> Callable[[], None]:
    """One pass of a loop as somebody writes it who cares: peft, logits at labels only, fused AdamW, no mask.

    Args:
        by_length: Sort the rows of the whole pass by length before they are cut into batches, which leaves next to no
            padding and makes a batch of few tasks. Otherwise batches are random, each padded to its longest row.
    """
    examples, inner = as_examples(what.rows), model.base_model.model
    params = [p for p in model.parameters() if p.requires_grad]
    steps = len(examples) // what.batch

    def run() -> None:
        optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
        order = np.random.default_rng(0).permutation(len(examples)).tolist()
        if by_length:
            order.sort(key=lambda i: len(examples[i]["ids"]))
        batches = [order[at : at + what.batch] for at in range(0, len(order), what.batch)]
        np.random.default_rng(1).shuffle(batches)
        model.train()
        for batch in batches:
            tensors = padded([examples[i] for i in batch])
            labels = tensors["labels"][:, 1:].to(what.device)
            slots.computed += tensors["input_ids"].numel()
            slots.real += int(tensors["attention_mask"].sum())
            kind = what.device.type
            with torch.autocast(kind, dtype=what.autocast or torch.bfloat16, enabled=what.autocast is not None):
                # A causal row padded on the right needs no mask.
                hidden = inner.model(input_ids=tensors["input_ids"].to(what.device), use_cache=False).last_hidden_state
                held = labels != -100
                loss = cross_entropy(inner.lm_head(hidden[:, :-1][held]).float(), labels[held])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def trainer_loop(
    model: Any, slots: Slots, what: Pass, *, folder: Path, options: Mapping[str, Any] = {}
) -> Callable[[], None]:
    """One pass by Hugging Face's Trainer, each batch padded to its longest row.

    Args:
        options: Of its arguments, such as ``train_sampling_strategy``.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    examples = as_examples(what.rows)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=what.batch,
        num_train_epochs=1,
        learning_rate=RATE,
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
        use_cpu=what.device.type == "cpu",
        bf16=what.autocast is not None,
        seed=0,
        **options,
    )

    def collator(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        tensors = padded(batch)
        slots.computed += tensors["input_ids"].numel()
        slots.real += int(tensors["attention_mask"].sum())
        return tensors

    def run() -> None:
        trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        if trainer.train().global_step != -(-len(what.rows) // what.batch):
            raise RuntimeError("the Trainer did not make one pass")

    return run


def as_examples(rows: Sequence[TokenRow]) -> list[dict[str, Any]]:
    """Rows as the Trainer's data set."""
    return [
        {"ids": [*row.context, *row.target], "answer": len(row.target), "length": row.length, "input_ids": row.context}
        for row in rows
    ]


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
