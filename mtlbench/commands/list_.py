"""List: what is installed."""

from __future__ import annotations

import click


@click.command("list")
@click.argument("group", required=False)
@click.option("-v", "--verbose", is_flag=True, help="Also tasks, backbones and protocols in every detail.")
def list_(group: str | None, verbose: bool) -> None:
    """List what is installed, from package metadata alone, and the protocols."""
    from mtlbench.api.hooks import GROUPS
    from mtlbench.planning.listing import backbone_line, peft_line, protocol_lines, suite_lines
    from mtlbench.planning.showing import method_summary
    from mtlbench.plugins import offers

    for name in (group,) if group else GROUPS:
        if name == "protocols":
            break
        known = offers(name)
        click.echo(f"{name}:")
        width = max((len(n) for n in known), default=0)
        for offered in known.values():
            origins = "  AND  ".join(f"{o.origin} ({o.module})" for o in offered)
            clash = "   two packages offer this name: uninstall one" if len(offered) > 1 else ""
            about = f"  {method_summary(offered[0])}" if name == "methods" and len(offered) == 1 else ""
            click.echo(f"  {offered[0].name:<{width}}  {origins}{clash}{about}".rstrip())
            for line in suite_lines(offered[0].name) if verbose and name == "tasks" else ():
                click.echo(f"    {line}")
            if verbose and name == "backbones":
                click.echo(f"    {backbone_line(offered[0].name)}")
        if name == "methods":
            click.echo(f"  {peft_line()}")
    if group in (None, "protocols"):
        click.echo("protocols:")
        for line in protocol_lines(verbose=verbose):
            click.echo(f"  {line}")
