"""A trained adapter on its backbone, ready to be called with a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.record import Record
from mtlbench.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtlbench.api.routing import Routing

TOKEN_BUDGET = 4096
"""Tokens of prompts that are generated from at once."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Adapter:
    """A backbone with what was trained on it, in evaluation mode, on the processor."""

    record: Record
    """The result of the cell that trained it."""
    model: nn.Module
    tokenizer: Any
    architecture: str
    """``causal`` or ``seq2seq``."""
    routing: Routing

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it was trained on, by their full names."""
        return self.record.cell.tasks

    def __call__(self, *, task: str | None = None, **inputs: Any) -> Any:
        """What the model gives for tensors of inputs, all rows being of one task, without gradients.

        Args:
            task: Full name; needed where the method routes by task and was trained on several.
            inputs: As the model takes them, with ``input_ids [rows, tokens]``.

        Raises:
            RequestError: the task is unknown, or needed.
        """
        import torch

        ids: Tensor = inputs["input_ids"]
        tasks = torch.full((ids.shape[0],), self._number(task), dtype=torch.long, device=ids.device)
        with torch.no_grad(), self.routing.of(tasks):
            return self.model(**inputs)

    def generate(
        self, prompts: str | Sequence[str], *, task: str | None = None, max_new_tokens: int = 16, stop: str = "\n"
    ) -> list[str]:
        """Greedy continuations of prompts that are written as in training, one for each.

        Args:
            task: Full name; needed where the method routes by task and was trained on several.
            stop: Text at which a continuation ends.

        Raises:
            RequestError: the task is unknown, or needed.
        """
        import torch

        from mtlbench.evaluation.generate import generate

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        arguments = {"until": [stop], "max_gen_toks": max_new_tokens, "do_sample": False}
        number = self._number(task)
        with torch.no_grad():
            return generate(
                self.model,
                self.tokenizer,
                [(text, arguments, number) for text in texts],
                architecture=self.architecture,
                routing=self.routing,
                max_length=self.record.cell.protocol.max_length,
                token_budget=TOKEN_BUDGET,
            )

    def __repr__(self) -> str:
        cell = self.record.cell
        return f"<Adapter {cell.variant}, seed {cell.seed}, on {cell.model}: {', '.join(self.tasks)}>"

    def _number(self, task: str | None) -> int:
        if task is None and len(self.tasks) > 1 and self._routed():
            raise RequestError(
                f"{self.record.cell.variant} routes by task: say which with task=. Known: {', '.join(self.tasks)}."
            )
        if task is not None and task not in self.tasks:
            raise RequestError(
                f"{self.record.cell.variant} was not trained on {task!r}. {did_you_mean(task, self.tasks)}"
            )
        return self.tasks.index(task) if task is not None else 0

    def _routed(self) -> bool:
        from mtlbench.planning.settings import build

        return build(self.record.cell.method, self.record.cell.settings).task_routed


def load_adapter(
    folder: str | Path,
    method: str | None = None,
    *,
    seed: int | None = None,
    protocol: str | None = None,
    key: str | None = None,
    model: str | Path | None = None,
) -> Adapter:
    """The trained model of a cell, ready to call: ``adapter(task="glue/rte", **inputs)``.

    Args:
        folder: A run folder, or one that ``mtlbench export --form mtlbench`` wrote.
        method: As the table shows it, such as ``lora[rank=4]``; needed for a run folder with several.
        seed: Needed where the method was trained with several.
        protocol: Name or start of the hash, where the method was trained under several.
        key: Start of the cell's key, instead of seed and protocol.
        model: Where the backbone is now, if it was moved.

    Raises:
        RequestError: the cell is not there, or several are meant.
        StoreError: the adapter was changed, or the backbone is not the one that was trained.
    """
    from mtlbench.cells.rebuild import rebuild

    path = Path(folder)
    record, adapter, where = (
        _exported(path)
        if (path / "record.json").is_file()
        else _trained(path, method, seed=seed, protocol=protocol, key=key)
    )
    if not adapter.is_dir():
        raise RequestError(f"{record.cell.variant} left no adapter: it trains nothing.")
    rebuilt = rebuild(record, adapter, model=str(model) if model is not None else where)
    rebuilt.method.finish(rebuilt.model)
    return Adapter(
        record=record,
        model=rebuilt.model,
        tokenizer=rebuilt.tokenizer,
        architecture=rebuilt.setup.architecture,
        routing=rebuilt.setup.routing,
    )


def _exported(path: Path) -> tuple[Record, Path, str | None]:
    """Record, adapter and place of the backbone of an exported adapter."""
    try:
        record = Record.from_json(json.loads((path / "record.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{str(path / 'record.json')!r} is no record that this version reads: {error}.") from error
    return record, path, None


def _trained(
    path: Path, method: str | None, *, seed: int | None, protocol: str | None, key: str | None
) -> tuple[Record, Path, str | None]:
    """The same of a cell in a run folder."""
    from mtlbench.backbones.names import found_model
    from mtlbench.cells.export import trained_record
    from mtlbench.commands.shared import run_folder

    if (path / "adapter_config.json").is_file():
        raise RequestError(
            f"{str(path)!r} is a checkpoint of peft: its README.md says how peft loads it. Name the run folder, or "
            "export with --form mtlbench."
        )
    store = run_folder(path)
    records = store.records()
    known = sorted({record.cell.variant for record in records.values() if record.status == "ok"})
    if method is None and len(known) != 1:
        raise RequestError(f"Say which method of {str(path)!r} is meant: {', '.join(known) or 'none is finished'}.")
    record = trained_record(records.values(), variant=method or known[0], seed=seed, protocol=protocol, key=key)
    return record, store.checked_adapter(record), found_model(record.cell, store.model_places(record.cell))
