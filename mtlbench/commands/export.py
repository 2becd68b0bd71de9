"""Export: a trained adapter with its card."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.commands.shared import run_folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", "variant", required=True, help="As the table shows it, such as lora or 'lora[rank=4]'.")
@click.option("--seed", type=int, help="Needed when the folder holds several.")
@click.option("--protocol", help="Name or start of the hash, where the folder holds the method under several.")
@click.option("--key", help="Start of the cell's key, instead of --seed and --protocol.")
@click.option("--model", "where", type=click.Path(path_type=Path), help="Where the backbone is now, if it was moved.")
@click.option("--task", help="Full name such as glue/rte; needed by methods that route by task.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Where the checkpoint goes.")
@click.option("--form", type=click.Choice(["peft", "mtlbench"]), default="peft", show_default=True)
def export(
    folder: Path,
    variant: str,
    seed: int | None,
    protocol: str | None,
    key: str | None,
    where: Path | None,
    task: str | None,
    to: Path,
    form: str,
) -> None:
    """Write a trained adapter and its model card.

    As a standard peft checkpoint, or as mtlbench saved it, together with the record that says how to load it.
    """
    from mtlbench.backbones.names import found_model
    from mtlbench.cells.export import export_record, siblings_of, trained_record

    store = run_folder(folder)
    records = store.records().values()
    record = trained_record(records, variant=variant, seed=seed, protocol=protocol, key=key)
    siblings = siblings_of(record, records)
    model = str(where) if where else found_model(record.cell, store.model_places(record.cell))
    export_record(record, store.checked_adapter(record), to, task=task, siblings=siblings, model=model, form=form)
    click.echo(f"wrote {to}", err=True)
