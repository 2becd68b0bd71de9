"""The command line: words in, one call, exit code out. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlbench.options import PROTOCOL, REQUEST, WORKERS, with_options

if TYPE_CHECKING:
    from mtlbench.api.report import Report
    from mtlbench.plan import Plan
    from mtlbench.store import RunFolder


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mtlbench")
def cli() -> None:
    """Compare multi-task parameter-efficient fine-tuning methods: same data, prompts, budget and seeds."""


@cli.command()
@with_options(REQUEST)
@with_options(WORKERS)
@with_options(PROTOCOL)
@click.option("--as", "formats", metavar="NAMES", help="Reports to render at the end, such as markdown,charts.")
def run(out: Path | None, executor: str, workers: int, device: str, formats: str | None, **words: Any) -> None:
    """Train and evaluate every method; the same command again does only what is missing."""
    from mtlbench.models import check_reachable
    from mtlbench.plan import preset_reports
    from mtlbench.plugins import load_executor, load_observer, offers
    from mtlbench.runner import run as run_cells
    from mtlbench.store import RunFolder

    reports = _reports(formats or preset_reports(words["preset"]))
    plan = _plan(words)
    starter = load_executor(executor)
    observers = {name: load_observer(name) for name in offers("observers")}
    check_reachable(plan.request.model)
    folder = RunFolder(out or plan.default_folder)
    folder.preflight()
    request = folder.put_request(plan.request.to_json(), plan.cells)
    code = run_cells(folder, request, plan.cells, starter, observers, device=device, workers=workers)
    click.echo(f"Records are in {folder.path}. Show the table with: mtlbench report {folder.path}", err=True)
    if reports and code != 130:
        _render(folder, reports, folder.path / "report")
    sys.exit(code)


@cli.command()
@with_options(REQUEST)
@with_options(PROTOCOL)
@click.option("--parameters", is_flag=True, help="Count what each method trains; loads torch, but no weights.")
def plan(out: Path | None, parameters: bool, **words: Any) -> None:
    """Show what would run and what is there already; creates nothing."""
    from mtlbench.status import plan_lines
    from mtlbench.store import RunFolder

    made = _plan(words)
    path = out or made.default_folder
    records = RunFolder(path).records() if path.is_dir() else {}
    for line in plan_lines(made.cells, records, folder=path):
        click.echo(line)
    if parameters:
        from mtlbench.engine.forecast import parameter_lines

        for line in parameter_lines(made.cells):
            click.echo(line)


@cli.command()
@click.option("--method", metavar="NAME", help="One method; settings in brackets stay fixed: peml, 'peml[layers=4]'.")
@click.option("--tasks", metavar="NAMES", help="Suites or single tasks: glue, or glue/rte,glue/sst2.")
@click.option("--model", metavar="NAME", help="demo (default), demo-t5, a local model folder or a hub id.")
@click.option("--data", metavar="WHERE", help="demo, hub, or a folder that mirrors hub ids.")
@click.option("--search", "searches", multiple=True, metavar="FIELD=VALUES", help="rank=4:64:log or dropout=0.0,0.1.")
@click.option("--budget", help="paper, standard or quick; options given here win.  [default: standard]")
@click.option("--trials", type=int, help="How many settings are tried.  [default: 100, 20 or 8 by budget]")
@click.option("--pruning", help="none, median or halving.  [default: none]")
@click.option("--at-once", type=int, help="Trials asked before their results are known.  [default: 4, or 2 if quick]")
@click.option("--seed", type=int, help="Seed of the search.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/TASKS-MODEL-tuning]")
@click.option("--to-optuna", metavar="URL", help="Copy the study to an Optuna storage, such as sqlite:///tuning.db.")
@with_options(WORKERS)
@with_options(PROTOCOL)
def tune(out: Path | None, to_optuna: str | None, executor: str, workers: int, device: str, **words: Any) -> None:
    """Search the settings of a method with Optuna's TPE, on held-out training rows; the same command again goes on."""
    from mtlbench.errors import RequestError
    from mtlbench.tuning.command import tune as search
    from mtlbench.tuning.tuning import Words

    given = {name: value for name, value in words.items() if value is not None}
    for needed in ("method", "tasks"):
        if needed not in given:
            raise RequestError(
                f"--{needed} is missing. Example: mtlbench tune --method peml --tasks glue --budget quick"
            )
    own = {name: given.pop(name) for name in Words.names() if name in given}
    code = search(
        Words(**own, protocol=given),
        out=out,
        to_optuna=to_optuna,
        executor=executor,
        workers=workers,
        device=device,
        say=click.echo,
        tell=lambda line: click.echo(line, err=True),
    )
    sys.exit(code)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--as", "formats", default="markdown,csv", show_default=True, metavar="NAMES", help="Reports to render.")
@click.option("--to", type=click.Path(path_type=Path), help="Where documents go.  [default: FOLDER/report]")
def report(folder: Path | None, formats: str, to: Path | None) -> None:
    """Print the tables of a run folder (the newest one by default) and write the documents."""
    store = _folder(folder)
    _render(store, _reports(formats), to or store.path / "report")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def status(folder: Path | None) -> None:
    """Show what is done, running, failed and missing in a run folder."""
    from mtlbench.status import status_lines

    store = _folder(folder)
    for line in status_lines(store.expected(), store.records(), store.running()):
        click.echo(line)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--method", "variant", required=True, help="As the table shows it, such as lora or 'lora[rank=4]'.")
@click.option("--seed", type=int, help="Needed when the folder holds several.")
@click.option("--task", help="Full name such as glue/rte; needed by methods that route by task.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Where the checkpoint goes.")
def export(folder: Path, variant: str, seed: int | None, task: str | None, to: Path) -> None:
    """Write a trained adapter as a standard peft checkpoint."""
    from mtlbench.exporting import export_record, trained_record

    store = _folder(folder)
    record = trained_record(store.records().values(), variant=variant, seed=seed)
    export_record(record, store.adapter(record.key), to, task=task)
    click.echo(f"wrote {to}", err=True)


@cli.command("list")
@click.argument("group", required=False)
@click.option("-v", "--verbose", is_flag=True, help="Show every task: data set, splits, metrics, source, licence.")
def list_(group: str | None, verbose: bool) -> None:
    """List installed methods, tasks, reports, executors and observers, from package metadata alone."""
    from mtlbench.api.hooks import GROUPS
    from mtlbench.listing import suite_lines
    from mtlbench.models import embedded
    from mtlbench.peft_types import peft_line
    from mtlbench.plugins import offers

    for name in (group,) if group else GROUPS:
        found = offers(name)
        click.echo(f"{name}:")
        width = max((len(n) for n in found), default=0)
        for offered in found.values():
            origins = "  AND  ".join(f"{o.origin} ({o.module})" for o in offered)
            clash = "   two packages offer this name: uninstall one" if len(offered) > 1 else ""
            click.echo(f"  {offered[0].name:<{width}}  {origins}{clash}")
            for line in suite_lines(offered[0].name) if verbose and name == "tasks" else ():
                click.echo(f"    {line}")
        if name == "methods":
            click.echo(f"  {peft_line()}")
    if group is None:
        click.echo(f"models embedded: {', '.join(embedded())}")


@cli.command()
@click.argument("names", metavar="NAMES")
@click.option("--data", metavar="WHERE", help="Rows of a suite: demo, hub, or a folder.  [default: demo]")
def check(names: str, data: str | None) -> None:
    """Check that methods keep their promises, on a tiny Llama and a tiny T5: lora, or 'lora[rank=4]',peml.

    The name of a suite checks its tasks on the demo data, or on --data. Prints one line per check: ok, skipped with the
    reason, or failed with what to change. Exit code 1 when one failed.
    """
    from mtlbench.conformance.names import is_suite, methods_named
    from mtlbench.errors import RequestError

    if is_suite(names):
        _check_suite(names, data or "demo")
    if data is not None:
        raise RequestError(f"--data is for suites, and {names!r} is none.")

    methods = methods_named(names)
    from mtlbench.conformance.kit import check_method

    failed = False
    for name, method in methods.items():
        backbone = None
        for finding in check_method(method):
            if finding.backbone != backbone:
                backbone = finding.backbone
                click.echo(f"{name} on {backbone}")
            click.echo(f"  {finding.outcome:<8}{finding.check:<20}{finding.message}")
            failed |= finding.outcome == "failed"
    sys.exit(1 if failed else 0)


def _check_suite(name: str, data: str) -> None:
    from mtlbench.conformance.suites import check_suite
    from mtlbench.plugins import load_suite

    failed = False
    for finding in check_suite(load_suite(name), data=data):
        click.echo(f"  {'ok' if finding.ok else 'failed':<8}{finding.check:<12}{finding.task:<30}  {finding.message}")
        failed |= not finding.ok
    sys.exit(1 if failed else 0)


def _plan(words: dict[str, Any]) -> Plan:
    from mtlbench.errors import RequestError
    from mtlbench.plan import Request, make_plan, preset

    name = words.pop("preset")
    given = {k: v for k, v in words.items() if v is not None}
    merged = {**(preset(name) if name else {}), **given}
    merged.pop("reports", None)
    for needed in ("methods", "tasks"):
        if needed not in merged:
            raise RequestError(f"--{needed} is missing. Example: mtlbench run --methods peml,mtl_lora --tasks glue")
    request = {k: merged.pop(k) for k in ("methods", "tasks", "model", "data") if k in merged}
    seeds = _seeds(str(merged.pop("seeds", "0")))
    return make_plan(Request(**request, seeds=seeds, protocol=merged))


def _seeds(words: str) -> tuple[int, ...]:
    from mtlbench.errors import RequestError

    try:
        seeds = tuple(int(word) for word in words.split(","))
    except ValueError:
        raise RequestError(
            f"--seeds {words!r} cannot be read. Write whole numbers with commas, such as 0,1,2."
        ) from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RequestError(f"--seeds {words!r}: seeds must be different and not negative.")
    return seeds


def _reports(formats: str | None) -> list[Report]:
    from mtlbench.plugins import load_report

    return [] if formats is None else [load_report(name) for name in _names(formats, "--as")]


def _render(store: RunFolder, reports: list[Report], target: Path) -> None:
    from mtlbench.study import study_of

    study = study_of(store.records().values(), expected=store.expected(), steps=store.steps)
    for renderer in reports:
        documents = renderer.render(study)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in documents.items():
            (target / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if renderer.on_terminal:
            content = next(iter(documents.values()))
            click.echo(content.decode() if isinstance(content, bytes) else content)
        click.echo(f"wrote {', '.join(str(target / name) for name in documents)}", err=True)


def _names(words: str, option: str) -> list[str]:
    from mtlbench.errors import RequestError

    names = [w.strip() for w in words.split(",") if w.strip()]
    if not names:
        raise RequestError(f"{option} is empty.")
    return names


def _folder(path: Path | None) -> Any:
    from mtlbench.errors import RequestError
    from mtlbench.store import RunFolder, newest

    found = path or newest(Path("runs"))
    if found is None:
        raise RequestError(
            "There is no run folder under runs/. Name one, or start with: "
            "mtlbench run --methods peml,mtl_lora --tasks glue"
        )
    if not (found / "requests").is_dir():
        raise RequestError(
            f"{str(found)!r} is no run folder: it has no requests/. Name the folder that `mtlbench run` printed."
        )
    return RunFolder(found)


def main() -> None:
    """Entry point: a wrong request prints one line and exits with 2."""
    from mtlbench.errors import MtlbenchError

    try:
        cli()
    except MtlbenchError as error:
        click.echo(f"mtlbench: {error}", err=True)
        sys.exit(2)
