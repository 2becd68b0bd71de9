"""``mtlbench run`` on the cells of :mod:`fault_worker`: ``python fault_run.py FOLDER REQUEST WORKERS``."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from fault_worker import COMMAND, take_environment

from mtlbench.errors import MtlbenchError
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import run
from mtlbench.store import RunFolder

RUN = (sys.executable, str(Path(__file__).resolve()))


def main(path: str, request: str, workers: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING)
    take_environment()
    try:
        folder = RunFolder(Path(path))
        folder.preflight()
        cells = folder.cells(request)
        return run(folder, request, cells, LocalExecutor(command=COMMAND), {}, device="cpu", workers=int(workers))
    except MtlbenchError as error:
        print(f"mtlbench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
