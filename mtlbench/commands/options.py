"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mtlbench.planning.complete import names

F = TypeVar("F", bound=Callable[..., Any])


def _several(kind: type[int] | type[float]) -> dict[str, Any]:
    """The words of an option that takes a number, or several with commas, which are a sweep: 100 or (100, 300)."""
    noun = "integer" if kind is int else "float"

    def read(_: click.Context, param: click.Parameter, text: str | None) -> Any:
        numbers = []
        for part in text.split(",") if text is not None else ():
            try:
                numbers.append(kind(part))
            except ValueError:
                raise click.BadParameter(f"{part.strip()!r} is not a valid {noun}.", param=param) from None
        return tuple(numbers) if len(numbers) > 1 else next(iter(numbers), None)

    return {"callback": read, "metavar": f"{noun.upper()}[,...]"}


_INTEGERS, _FLOATS = _several(int), _several(float)

REQUEST: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--methods",
        metavar="NAMES",
        shell_complete=names("methods"),
        help="Methods, with settings in brackets: peml,'lora[rank=16]'.",
    ),
    click.option(
        "--tasks",
        metavar="NAMES",
        shell_complete=names("tasks"),
        help="Suites or single tasks: glue, or glue/rte,glue/sst2.",
    ),
    click.option(
        "--probe",
        metavar="NAMES",
        shell_complete=names("tasks"),
        help="Tasks scored before and after training and never trained on: forgetting.",
    ),
    click.option(
        "--preset",
        metavar="NAME",
        shell_complete=names("presets"),
        help="A named request, such as glue/quick; options given here win.",
    ),
    click.option(
        "--model",
        metavar="NAME",
        shell_complete=names("backbones"),
        help="demo (default), demo-t5, smollm2, a folder, a GGUF file or a hub id; a,b is a sweep.",
    ),
    click.option("--data", metavar="WHERE", help="demo, hub, or a folder that mirrors hub ids."),
    click.option(
        "--seeds", metavar="N,N", help="Seeds, 0,1,2 or 0-4; every method sees the same order per seed.  [default: 0]"
    ),
    click.option(
        "--tune", metavar="LEVEL", help="Tune every method equally, beside its default: quick, standard or paper."
    ),
    click.option("--tune-trials", type=int, metavar="N", help="Trials of each method.  [default: 6, 12, 30 by level]"),
    click.option("--no-base", is_flag=True, help="Do not add the row of the untrained backbone, base."),
    click.option(
        "--match-parameters", metavar="BUDGET", help="Size every method to a budget: 0.5% of the backbone, 1e6, 500k."
    ),
    click.option("--tuning", metavar="FILES", help="Searches that the settings come from: files of mtlbench tune."),
    click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/TASKS-MODEL]"),
)
PROTOCOL: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--protocol",
        "name",
        metavar="NAME",
        shell_complete=names("protocols"),
        help="A named protocol or a TOML file; options win.  [default: standard]",
    ),
    click.option("--epochs", **_FLOATS, help="Passes over the joint training rows; 1,3 is a sweep.  [default: 3]"),
    click.option("--steps", **_INTEGERS, help="Optimizer steps, instead of epochs; 50,100 is a sweep."),
    click.option("--batch-size", type=int, help="Rows per optimizer step.  [default: 32]"),
    click.option("--micro-batch", type=int, help="Rows per forward pass.  [default: the whole batch]"),
    click.option("--max-length", type=int, help="Longest row in tokens.  [default: 256]"),
    click.option(
        "--chat-template/--no-chat-template", default=None, help="Prompts as turns in the tokenizer's chat template."
    ),
    click.option(
        "--learning-rate",
        **_FLOATS,
        help="Peak learning rate where a method sets none; 1e-4,1e-3 is a sweep.  [default: 1e-3]",
    ),
    click.option(
        "--batching",
        help="drawn (each step a draw of the mixture) or by_length (as earlier versions).  [default: drawn]",
    ),
    click.option("--optimizer", help="adamw, adafactor or sgd.  [default: adamw]"),
    click.option("--schedule", help="cosine, linear or constant.  [default: cosine]"),
    click.option(
        "--mixing",
        metavar="MIXTURE",
        help="proportional, uniform, temperature:T, capped:ROWS, fraction, weights:TASK=W,...  [default: proportional]",
    ),
    click.option(
        "--task-weighting",
        metavar="WEIGHTS",
        help="Loss over a step: rows, tasks, weights:TASK=W,...  [default: as each method declares]",
    ),
    click.option(
        "--balance",
        metavar="NAME[...]",
        help="Balance tasks: pcgrad, cagrad, uncertainty, ... (mtlbench list balancers).  [default: none]",
    ),
    click.option("--train-rows", **_INTEGERS, help="At most this many training rows per task; 100,300 is a sweep."),
    click.option("--k-shot", metavar="K", help="K training rows of each task, or K:class of each label, by seed."),
    click.option(
        "--holdout", type=float, metavar="SHARE", help="Evaluate on this share of the training split instead."
    ),
    click.option(
        "--sources",
        metavar="NAMES",
        shell_complete=names("tasks"),
        help="Tasks to train first; --tasks are trained from there and scored.",
    ),
    click.option("--adapt-epochs", type=float, help="Passes over the rows of --tasks after --sources."),
    click.option("--adapt-steps", type=int, help="Steps on --tasks after --sources, instead of epochs."),
    click.option(
        "--held-out", type=float, metavar="SHARE", help="Training rows kept for early stopping.  [default: 0.1]"
    ),
    click.option("--eval-rows", type=int, help="At most this many evaluation rows per task."),
    click.option(
        "--eval-from-train", type=float, metavar="SHARE", help="Score this share of the training rows instead."
    ),
    click.option("--evals-per-run", type=int, help="Scores of the early-stopping split; 0 never stops.  [default: 4]"),
    click.option("--patience", type=int, help="Stop after this many scores without a better one.  [default: 2]"),
    click.option(
        "--select-by",
        metavar="WHAT",
        help="Keep the state that held-out rows score best: loss or metric.  [default: loss]",
    ),
    click.option("--dtype", help="auto, float32, bfloat16 or float16 (with loss scaling).  [default: auto]"),
    click.option("--quantize", help="Store the frozen backbone in fewer bits: nf4, fp4, int8, fp8.  [default: none]"),
    click.option("--tf32/--no-tf32", default=None, help="Float32 products of GPUs with 10 bits of mantissa."),
    click.option("--attention", help="auto (sdpa where the backbone has it), sdpa or eager.  [default: auto]"),
    click.option("--checkpointing/--no-checkpointing", default=None, help="Recompute layers in backward."),
)

WORKERS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--executor", default="local", show_default=True, help="local, ray or slurm, with settings: 'slurm[time=60]'."
    ),
    click.option(
        "--workers", type=click.IntRange(min=0), default=0, help="Worker processes.  [default: one per device]"
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
)

DEVICES: tuple[Callable[[Any], Any], ...] = (
    click.option("--devices-per-cell", metavar="N", help="GPUs of a cell, also by method: 1,full=4.  [default: 1]"),
    click.option(
        "--workers-per-device",
        type=click.IntRange(min=1),
        default=1,
        metavar="N",
        help="Workers that share each GPU, for small backbones.  [default: 1]",
    ),
    click.option("--shard", is_flag=True, help="Cut the frozen backbone into parts, one for each device of a cell."),
)

LIMITS: tuple[Callable[[Any], Any], ...] = (
    *DEVICES,
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="CPU threads of each worker.  [default: OMP_NUM_THREADS, or the cores divided among the workers]",
    ),
    click.option(
        "--silence",
        "silence_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="End a cell that shows no progress for so long.  [default: 1800]",
    ),
    click.option(
        "--cell-timeout",
        "cell_timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="End a cell that runs longer.  [default: no limit]",
    ),
)

JSON: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead; docs/schemas.md describes it."
    ),
)

TRACK: tuple[Callable[[Any], Any], ...] = (
    click.option("--track", metavar="NAMES", help="Log to trackers too: tensorboard, wandb, mlflow."),
)


def with_options(options: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add
