"""The sheet: what only a card can show, in at most eight minutes, as one markdown file that grows row by row.

    python benchmarks/gpu.py                          # on a CUDA device, into gpu-sheet.md
    python benchmarks/gpu.py --seconds 240 --out short.md
    python benchmarks/gpu.py --device cpu --toy       # toy shapes, to see that it runs

Correctness comes first (each method's step against the processor, HFLM, resuming, merging, reading back), then speed,
the share of the card's matrix rate and memory against the forecast. A step that would not end in time is left out by
name, and what is done is on disk whatever happens afterwards. It runs from a checkout, installed or not, beside torch,
transformers, pluggy, psutil and safetensors; without lm-eval or peft the rows that need them say so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Let this checkout be imported and its plugins be found, also where it is not installed."""
    sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("methods", "tasks", "reports", "benchmarks"))]
    try:
        metadata.distribution("mtlbench")
        return
    except metadata.PackageNotFoundError:
        pass
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    made = Path(tempfile.mkdtemp(prefix="mtlbench-")) / f"mtlbench-{project['version']}.dist-info"
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mtlbench\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (made / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    sys.path.append(str(made.parent))


class Sheet:
    """A markdown file that is whole after every line.

    Args:
        seconds: After them, no further step begins.
    """

    def __init__(self, path: Path, *, seconds: float) -> None:
        self.path, self.left_out, self.failed = path, list[str](), list[str]()
        self._end = time.monotonic() + seconds
        path.write_text("")

    @property
    def left(self) -> float:
        """Seconds until no further step begins."""
        return self._end - time.monotonic()

    def line(self, text: str = "") -> None:
        """Add a line, on disk and on the terminal."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        print(text, flush=True)

    def table(self, title: str, about: str, heads: Sequence[str]) -> None:
        """Begin a table."""
        for text in ("", f"## {title}", "", about, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"):
            self.line(text)

    def row(self, *values: object) -> None:
        """Add a row."""
        self.line(f"| {' | '.join(str(value).replace('|', '/') for value in values)} |")

    def step(self, what: str, do: Callable[[], None], *, expected: float = 0.0) -> bool:
        """Do a step that adds rows, unless it is expected to end too late; whether it was done without an error.

        An error is a row, and the steps after it are done: they may well work.
        """
        if self.left <= expected:
            self.left_out.append(what)
            return False
        try:
            do()
            return True
        except Exception as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0][:160]
            self.failed.append(what)
            self.row(what, f"FAILED: {type(error).__name__}: {first}")
            return False


def head(sheet: Sheet, device: Any, *, toy: bool) -> None:
    """The card, the versions and the matrix rates."""
    import torch

    from mtlbench.measuring.conditions import hardware

    found = hardware(device)
    name = found.get("device") or found["processor"]
    sheet.line(f"# {name}, {time.strftime('%Y-%m-%d')}{', toy shapes' if toy else ''}")
    sheet.line()
    versions = []
    for package in ("torch", "transformers", "peft", "lm-eval"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    memory = f", {found['device_memory_gib']} GiB" if "device_memory_gib" in found else ""
    sheet.line(
        f"{found['cores']} cores, {found['threads']} threads{memory}; CUDA {torch.version.cuda}; {', '.join(versions)}."
    )


def steps(sheet: Sheet, device: Any, options: argparse.Namespace) -> None:
    """All steps, the most telling of each kind first."""
    import gpu_checks
    import gpu_speed

    chosen = [name for name in (options.methods or "").split(",") if name]
    gpu_checks.check(sheet, device, methods=chosen, toy=options.toy)
    gpu_speed.measure(sheet, device, toy=options.toy)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What only a card can show, as one markdown file.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--toy", action="store_true", help="small shapes and few methods, for a processor")
    parser.add_argument("--seconds", type=float, default=450.0, help="no step begins after them (default: 450)")
    parser.add_argument("--out", type=Path, default=Path("gpu-sheet.md"))
    parser.add_argument("--methods", help="those to check, with commas (default: all; with --toy a few)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheet; 1 where a check did not hold or a step failed."""
    options = arguments(argv)
    make_importable()
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        from mtlbench.backbones.machine import no_gpu_why

        why = no_gpu_why() or "torch sees no CUDA device."
        print(f"gpu.py: {why} For toy shapes on the processor: --device cpu --toy", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    sheet = Sheet(options.out, seconds=options.seconds)
    begun = time.monotonic()
    head(sheet, device, toy=options.toy)
    steps(sheet, device, options)
    for text in closing(sheet, time.monotonic() - begun):
        sheet.line(text)
    return 1 if sheet.failed else 0


def closing(sheet: Sheet, seconds: float) -> Iterator[str]:
    """What the reader must know of the whole."""
    yield ""
    yield f"{seconds:.0f} s in all."
    if sheet.left_out:
        yield f"Left out, as the time was up: {', '.join(sheet.left_out)}."
    yield f"DID NOT HOLD: {', '.join(sheet.failed)}." if sheet.failed else "Everything that was tried held."


if __name__ == "__main__":
    sys.exit(main())
