"""Pages are executed: every `$ command` prints what the page shows, titled blocks are files, Python blocks run.

Budgets are made smaller, so numbers are not compared; sentences of errors are, letter by letter. Every other command
line in any document must at least be one that the command line understands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from mtlbench.cli import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXECUTED = [path for path in DOCUMENTS if "\n```console\n" in path.read_text(encoding="utf-8")]
SMALLER = {"--steps": "3", "--train-rows": "48", "--eval-rows": "16"}

_BLOCK = re.compile(r'^```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    kind: str
    title: str | None
    text: str


def blocks(path: Path) -> list[Block]:
    return [Block(**found.groupdict()) for found in _BLOCK.finditer(path.read_text(encoding="utf-8"))]


def sessions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of a console block, each with the lines that it shall print."""
    lines = iter(text.splitlines())
    command, shown = "", []
    for line in lines:
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
        else:
            shown.append(line)
    yield command, shown


def smaller(command: str) -> str:
    for option, value in SMALLER.items():
        command = re.sub(rf"({option}) \d+", rf"\1 {value}", command)
    return f"{command} --workers 1" if command.startswith("mtlbench run ") else command


def plain(line: str) -> str:
    """A line without numbers, marks, rules and the blanks that align it."""
    line = re.sub(r"[0-9a-f]{12,}|\d[\d,.]*e?-?\d*|[*‡†∗±|:−+-]", " ", line)
    return " ".join(line.split())


def unmet(shown: list[str], printed: str) -> list[str]:
    """Lines of a page that the command did not print; `...` stands for lines or text that it leaves out."""
    exact = printed.splitlines()
    lines = {plain(line) for line in exact}

    def met(line: str) -> bool:
        if "..." in line:
            pattern = ".*".join(map(re.escape, line.split("...")))
            return any(re.fullmatch(pattern, found) for found in exact)
        return line in exact or (not line.startswith("mtlbench:") and plain(line) in lines)

    return [line for line in shown if line.strip() not in ("", "...") and not met(line)]


class Shell:
    """A folder in which the commands of a page run; `pip install -e FOLDER` puts it on the path."""

    def __init__(self, folder: Path, install: Callable[[Path, Path], str]) -> None:
        self.folder, self.install = folder / "work", install
        self.tools, self.paths = folder / "bin", [os.environ.get("PYTHONPATH", "")]
        self.folder.mkdir()
        self.tools.mkdir()
        main = "-c 'import sys; from mtlbench.cli import main; sys.argv[0] = \"mtlbench\"; main()'"
        for name, words in {"mtlbench": main, "python": "", "pytest": "-m pytest -p no:cacheprovider"}.items():
            script = self.tools / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            script.chmod(0o755)

    def run(self, command: str) -> tuple[int, str]:
        if command.startswith("pip install -e "):
            return self._install(self.folder / command.split()[-1])
        environ = {
            **os.environ,
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(self.paths),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=environ, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    def _install(self, package: Path) -> tuple[int, str]:
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        site = package.parent.parent / f"site-{project['name']}"
        self.install(package, site)
        for copy in site.glob("*.py"):
            copy.unlink()  # an editable install reads the folder itself
        self.paths = [str(site), str(package), *self.paths]
        return 0, ""


@pytest.mark.slow  # commands that train: a minute of one core
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_shows_what_its_commands_print(
    page: Path, tmp_path: Path, installed: Callable[[Path, Path], str]
) -> None:
    shell = Shell(tmp_path, installed)
    for block in blocks(page):
        if block.title:
            target = shell.folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            code, printed = shell.run(f"python -c {shlex.quote(block.text)}")
            assert code == 0, printed
        elif block.kind == "console":
            for command, shown in sessions(block.text):
                code, printed = shell.run(smaller(command))
                wrong = any(line.startswith("mtlbench:") for line in shown)
                assert code == (2 if wrong else 0), f"$ {command}\n{printed}"
                assert not unmet(shown, printed), f"$ {command} of {page.name} printed:\n{printed}"


def test_a_line_that_is_not_printed_is_found() -> None:
    printed = "lora      68.3 ± 1.9*  73.5 ± 2.1*\nmtlbench: no 'a' here.\n"
    assert unmet(["lora  12.0 ± 0.3", "...", "mtlbench: no 'a' here."], printed) == []
    assert unmet(["peml  12.0 ± 0.3", "mtlbench: no 'b' here."], printed) == [
        "peml  12.0 ± 0.3",
        "mtlbench: no 'b' here.",
    ]
    assert list(sessions("$ a \\\n    b\nout\n$ c\n")) == [("a b", ["out"]), ("c", [])]


def commands(path: Path) -> Iterator[str]:
    """Every `mtlbench` line in a block of a document, without what stands for something else."""
    for block in blocks(path):
        for line in block.text.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if line.startswith("mtlbench ") and "..." not in line:
                yield line


def mentions(path: Path) -> Iterator[str]:
    """The same in sentences, which may leave out what a command needs."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    for line in re.findall(r"`(mtlbench -?\w[^`]+)`", text):
        if "..." not in line and "|" not in line:
            yield line


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_of_a_document_is_understood(page: Path) -> None:
    complete = list(commands(page))
    for line in [*complete, *mentions(page)]:
        words = shlex.split(re.split(r" (?:\||>|&&|;) ", line)[0], comments=True)[1:]
        try:
            understood(cli, "mtlbench", words)
        except click.exceptions.Exit:
            pass
        except click.MissingParameter as error:
            assert line not in complete, f"{page.name}: {line}: {error.format_message()}"
        except click.ClickException as error:
            raise AssertionError(f"{page.name}: {line}: {error.format_message()}") from None


def understood(command: click.Command, name: str, words: list[str]) -> None:
    """Parses without running anything."""
    context = command.make_context(name, list(words))
    if isinstance(command, click.Group):
        part, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None and part is not None
        understood(found, part, rest)


def test_the_wheel_holds_licence_and_examples(tmp_path: Path) -> None:
    import zipfile

    kept = shutil.ignore_patterns(".venv", ".git", "runs", "build", "dist", "tests", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "source", ignore=kept)
    shutil.copytree(ROOT / "tests/thirdparty/mtlbench-example", tmp_path / "source/tests/thirdparty/mtlbench-example")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "mtlbench-0.1.0.dist-info/licenses/LICENSE",
        "mtlbench/examples/tutorial.ipynb",
        "mtlbench/examples/real_data.py",
        "mtlbench/examples/mtlbench-example/mtlbench_example.py",
    } <= names
