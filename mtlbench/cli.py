"""The command line: words in, one call, exit code out. A command is a file in ``commands`` and a line here."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

import click

from mtlbench.commands.authors.forget import forget
from mtlbench.commands.authors.new import new
from mtlbench.commands.authors.show import show
from mtlbench.commands.bundle import bundle
from mtlbench.commands.check import check
from mtlbench.commands.compare import compare
from mtlbench.commands.export import export
from mtlbench.commands.list_ import list_
from mtlbench.commands.measure import measure
from mtlbench.commands.plan import plan
from mtlbench.commands.published import published
from mtlbench.commands.report import report
from mtlbench.commands.reproduce import reproduce
from mtlbench.commands.run import run
from mtlbench.commands.seeds import seeds
from mtlbench.commands.statistics import statistics
from mtlbench.commands.status import status
from mtlbench.commands.tune import tune

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


class _Commands(click.Group):
    """Ends with 130 after an interrupt, where click would end with 1, the code for failed cells."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mtlbench")
def cli() -> None:
    """Compare multi-task parameter-efficient fine-tuning methods: same data, prompts, budget and seeds."""


for command in (
    run,
    plan,
    tune,
    report,
    status,
    statistics,
    seeds,
    compare,
    reproduce,
    measure,
    export,
    published,
    list_,
    show,
    forget,
    check,
    new,
    bundle,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: a wrong request prints one line and exits with 2, an interrupt at any moment with 130."""
    _use_utf8()
    pressed: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = _exit_code()
    except BaseException:
        # Libraries that are interrupted while they are imported may raise something else.
        if not pressed:
            raise
        code = INTERRUPTED
    sys.exit(INTERRUPTED if pressed and code else code)


def _use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where the locale has another encoding.

    Paths would reach the libraries in Rust and C++ as other bytes otherwise. What the terminal cannot show is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{shown}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _exit_code() -> int:
    from mtlbench.errors import MtlbenchError
    from mtlbench.files.owner import import_variables
    from mtlbench.files.redact import guard_terminal, redact

    os.environ.update(import_variables())
    guard_terminal()
    for argument in sys.argv[1:]:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            click.echo(f"mtlbench: {argument!a} is not UTF-8. Rename the file or folder.", err=True)
            return 2
    try:
        cli()
    except MtlbenchError as error:
        click.echo(f"mtlbench: {redact(str(error))}", err=True)
        return 2
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0
