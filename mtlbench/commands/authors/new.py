"""New: the package of a plugin, ready to be installed, checked and changed."""

from __future__ import annotations

from pathlib import Path

import click

GROUPS = {
    "method": "methods",
    "suite": "tasks",
    "report": "reports",
    "observer": "observers",
    "executor": "executors",
}
"""Kind of plugin to the group of its entry point."""


@click.command()
@click.argument("kind", type=click.Choice(list(GROUPS)))
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: NAME, with dashes]")
def new(kind: str, name: str, to: Path | None) -> None:
    """Write the package of a method, suite, report, observer or executor that passes `mtlbench check` at once."""
    written = write_package(kind, name, to or Path(name.replace("_", "-")))
    for path in written:
        click.echo(f"wrote {path}", err=True)
    folder = written[0].parent
    click.echo(f"pip install -e {folder}\nmtlbench check {name}\npytest {folder}")


def write_package(kind: str, name: str, folder: Path) -> list[Path]:
    """Write ``pyproject.toml``, the module and its test.

    Raises:
        RequestError: the name is no name of a module, or is taken; or the folder is there and not empty.
    """
    import importlib.util
    import keyword
    from string import Template

    from mtlbench.errors import RequestError
    from mtlbench.plugins import offers

    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise RequestError(f"{name!r} cannot name a module: write small letters, digits and _, such as my_{kind}.")
    if name in offers(GROUPS[kind]):
        raise RequestError(f"A {kind} {name!r} is installed already. Choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise RequestError(f"A module {name!r} is installed already, which the plugin would hide. Choose another name.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{str(folder)!r} is there already. Name another folder with --to.")
    words = {
        "kind": kind,
        "group": GROUPS[kind],
        "name": name,
        "package": name.replace("_", "-"),
        "title": name.replace("_", " ").capitalize(),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
    }
    templates = Path(__file__).parents[2] / "templates"
    files = {"pyproject.toml": "pyproject.toml.txt", f"{name}.py": f"{kind}.txt", f"test_{name}.py": "test.txt"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, template in files.items():
            (folder / file).write_text(Template((templates / template).read_text()).substitute(words))
    except OSError as error:
        raise RequestError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from error
    return [folder / file for file in files]
