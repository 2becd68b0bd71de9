"""List: what is installed."""

from __future__ import annotations

from typing import Any

import click

from mtlbench.commands.options import JSON, with_options


@click.command("list")
@click.argument("group", required=False)
@click.option("-v", "--verbose", is_flag=True, help="Also tasks, backbones and protocols in every detail.")
@with_options(JSON)
def list_(group: str | None, verbose: bool, as_json: bool) -> None:
    """List what is installed, from package metadata alone, and the protocols."""
    from mtlbench.api.hooks import GROUPS
    from mtlbench.planning.listing import backbone_line, peft_line, protocol_lines, suite_lines
    from mtlbench.planning.showing import method_summary
    from mtlbench.plugins import offers

    if as_json:
        from mtlbench.results.data.as_json import json_text

        click.echo(json_text("list", _content(group)))
        return
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


def _content(group: str | None) -> dict[str, Any]:
    """Group to what packages offer in it; the protocols that come with mtlbench."""
    from mtlbench.api.hooks import GROUPS
    from mtlbench.planning.protocols import about, names
    from mtlbench.plugins import offers
    from mtlbench.results.data.as_json import offer_json

    groups = {
        name: [offer_json(offer, clash=len(of_name) > 1) for of_name in offers(name).values() for offer in of_name]
        for name in (GROUPS if group is None else (group,))
        if name != "protocols"
    }
    protocols = [{"name": name, "about": about(name)} for name in names()]
    return {"groups": groups, **({"protocols": protocols} if group in (None, "protocols") else {})}
