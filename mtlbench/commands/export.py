"""Export: a trained adapter as a peft checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", "variant", required=True, help="As the table shows it, such as lora or 'lora[rank=4]'.")
@click.option("--seed", type=int, help="Needed when the folder holds several.")
@click.option("--task", help="Full name such as glue/rte; needed by methods that route by task.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Where the checkpoint goes.")
def export(folder: Path, variant: str, seed: int | None, task: str | None, to: Path) -> None:
    """Write a trained adapter as a standard peft checkpoint."""
    from mtlbench.exporting import export_record, trained_record

    store = run_folder(folder)
    record = trained_record(store.records().values(), variant=variant, seed=seed)
    export_record(record, store.adapter(record.key), to, task=task)
    click.echo(f"wrote {to}", err=True)
