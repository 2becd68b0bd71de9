"""Export: a trained adapter with its card."""

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
@click.option("--form", type=click.Choice(["peft", "mtlbench"]), default="peft", show_default=True)
def export(folder: Path, variant: str, seed: int | None, task: str | None, to: Path, form: str) -> None:
    """Write a trained adapter and its model card.

    As a standard peft checkpoint, or as mtlbench saved it, together with the record that says how to load it.
    """
    from mtlbench.cells.export import export_record, siblings_of, trained_record

    store = run_folder(folder)
    records = store.records().values()
    record = trained_record(records, variant=variant, seed=seed)
    siblings = siblings_of(record, records)
    export_record(record, store.checked_adapter(record), to, task=task, siblings=siblings, form=form)
    click.echo(f"wrote {to}", err=True)
