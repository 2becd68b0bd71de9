"""Machines unlike ours: users without a home, folders with modules, locales, full inodes, interrupts, groups."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mtlbench.files.owner import import_variables
from mtlbench.files.temporary import atomic_write

COMMAND = shutil.which("mtlbench", path=str(Path(sys.executable).parent)) or ""
SMALL = ("--methods", "base", "--tasks", "glue/rte", "--eval-rows", "4", "--train-rows", "16")
pytestmark = pytest.mark.skipif(not COMMAND, reason="the command is not installed beside this interpreter")


def environ(**changes: str | None) -> dict[str, str]:
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


def can(*argv: str) -> bool:
    return shutil.which(argv[0]) is not None and subprocess.run(argv, capture_output=True, check=False).returncode == 0


UNKNOWN = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
"""A user that the system does not know, as containers have; files stay those of the real one."""


def test_a_stranger_without_a_home_in_a_folder_of_modules_gets_scores(tmp_path: Path) -> None:
    if not can(*UNKNOWN, "true"):
        pytest.skip("this machine gives no user namespace")
    work = tmp_path / "repo"
    (work / "peft").mkdir(parents=True)
    for name in ("datasets.py", "torch.py", "peft/__init__.py"):
        (work / name).write_text("raise SystemExit('a module of the working directory was run')\n")
    where = environ(HOME=None, XDG_CACHE_HOME=None, MTLBENCH_CACHE=None, LANG="C", TERM="dumb", COLUMNS="20")
    argv = [*UNKNOWN, COMMAND, "run", *SMALL, "--out", str(tmp_path / "run"), "--workers", "1"]
    done = subprocess.run(argv, cwd=work, env=where, capture_output=True, text=True, timeout=300, check=False)
    logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("*"))
    assert done.returncode == 0, done.stderr + logs
    assert "base: ok" in done.stderr and "nothing is cached" in logs
    assert sorted(path.name for path in work.iterdir()) == ["datasets.py", "peft", "torch.py"], "a folder ~ was made"


def test_children_find_the_modules_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.py").write_text("print('found')\n")
    monkeypatch.chdir(tmp_path)
    for path, found in ((["/nowhere"], False), (["", "/nowhere"], True), ([str(tmp_path)], True)):
        monkeypatch.setattr(sys, "path", path)
        child = [sys.executable, "-m", "here"]
        done = subprocess.run(child, env=environ(**import_variables()), capture_output=True, text=True, check=False)
        assert (done.stdout == "found\n") is found, done.stderr


def interrupted_while_importing(module: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``plan`` and interrupt it while it imports ``module``."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{module}.py").write_text(f"open({str(gate)!r}).read()\n")
    path = os.pathsep.join([str(tmp_path / "first"), *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [COMMAND, "plan", *SMALL]
    process = subprocess.Popen(
        argv,
        env=environ(PYTHONPATH=path),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored below a background job
    )
    with gate.open("w"):  # opens once the command reads the other end
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
    return subprocess.CompletedProcess(argv, process.returncode, stderr=errors)


def test_an_interrupt_while_planning_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    done = interrupted_while_importing("pluggy", tmp_path)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr


def test_an_interrupt_before_anything_is_imported_ends_as_shells_call_130(tmp_path: Path) -> None:
    assert interrupted_while_importing("click", tmp_path).returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_names_and_output_survive_other_locales(tmp_path: Path, locale: dict[str, str]) -> None:
    from mtlbench.backbones.names import BACKBONES

    model = Path(shutil.copytree(BACKBONES / "demo", tmp_path / "模型 é †"))
    argv = [COMMAND, "plan", *SMALL, "--model", str(model), "--data", "demo"]
    done = subprocess.run(argv, env=environ(**locale), capture_output=True, check=False)
    assert done.returncode == 0 and b"1 cell: 1 to run" in done.stdout, done.stderr


def test_a_name_that_is_not_utf8_is_one_line() -> None:
    done = subprocess.run([COMMAND, "plan", *SMALL, "--model", b"x\xff"], capture_output=True, check=False)
    assert (
        done.returncode == 2 and done.stderr.strip() == b"mtlbench: 'x\\udcff' is not UTF-8. Rename the file or folder."
    )


def test_a_closed_output_is_no_failure() -> None:
    done = subprocess.run(["sh", "-c", f'"{COMMAND}" plan {" ".join(SMALL)} >&-'], capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr


def test_files_that_are_used_up_are_told_from_space(tmp_path: Path) -> None:
    if not can("unshare", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path)):
        pytest.skip("this machine lets nobody mount a file system")
    script = (
        "import sys; from pathlib import Path; from mtlbench.files.sealed import write_new\n"
        "for at in range(9): write_new(Path(sys.argv[1]) / str(at), b'x')\n"
    )
    mount = f"mount -t tmpfs -o nr_inodes=6 none '{tmp_path}' && '{sys.executable}' -c \"$0\" '{tmp_path}'"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, script], capture_output=True, text=True, check=False)
    assert "the number of files (inodes) of its file system is used up, not its space" in done.stderr


def test_weights_in_a_folder_of_a_group_can_be_read_by_the_group(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with atomic_write(tmp_path / "adapter.safetensors") as made:
            save_file({"a": np.zeros(3)}, made)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "adapter.safetensors").stat().st_mode) == 0o664
