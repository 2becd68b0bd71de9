"""A table's protocol in words."""

from __future__ import annotations

from mtlbench.api.cell import Protocol
from mtlbench.results.tables import Table, seed_words


def equal_words(table: Table) -> str:
    """What is equal for all rows, in a sentence."""
    p = table.protocol
    rows = [
        f"at most {n} {kind} rows a task" for n, kind in ((p.train_rows, "training"), (p.eval_rows, "evaluation")) if n
    ]
    seeds = {row.seeds for row in table.rows if row.seeds}
    words = [
        f"data {p.data}",
        f"prompts {p.prompts or 'of an unknown version'}",
        f"rows of at most {p.max_length} tokens",
        *rows,
        f"evaluated on {p.holdout:.0%} of the training split" if p.holdout else "",
        f"scored on {p.eval_from_train:.0%} of the training rows" if p.eval_from_train else "",
        f"{p.k_shot.replace(':', ' shots of each ')}{'' if ':' in p.k_shot else ' shots of each task'}"
        if p.k_shot
        else "",
        f"trained first on {', '.join(p.source_tasks)}, then for {_budget(p.adaptation())}" if p.sources else "",
        f"tuning effort {p.tuning}" if p.tuning != "none" else "",
        f"{_budget(p)} of batch {p.batch_size}",
        f"{p.mixing} mixing",
        f"learning rate {p.learning_rate:g} ({p.schedule}) where a method sets none",
        f"early stopping ({p.evals_per_run} scores a run, patience {p.patience})"
        if p.evals_per_run
        else "no early stopping",
        seed_words(*seeds) if len(seeds) == 1 else "",
        f"protocol {p.label}",
    ]
    return f"Equal for all rows: {'; '.join(filter(None, words))}."


def _budget(p: Protocol) -> str:
    return f"{p.steps} steps" if p.steps is not None else f"{p.epochs:g} epochs"
