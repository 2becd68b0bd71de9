"""Nothing opens a socket where a bundle or the demo is used: every process of a run is watched and forbidden to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.store import RunFolder

CLI = [sys.executable, "-m", "mtlbench"]
SMALL = (
    "--no-base", "--methods", "lora", "--steps", "3", "--batch-size", "8", "--train-rows", "30", "--eval-rows", "8",
)  # fmt: skip
FORBID = """
import os, socket, sys

def _told(word):
    with open(os.environ["SOCKET_LOG"], "a") as log:
        log.write(f"{os.getpid()} {word}\\n")

def _forbidden(name):
    def refuse(*args, **more):
        _told(f"{name} {args[-1:]} {sys.argv[:3]}")
        raise OSError(f"{name} is forbidden here")
    return refuse

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, _forbidden(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, _forbidden(name))
_told("armed")
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """An environment without any offline switch, an empty home, and sockets forbidden and logged in every process."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FORBID)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    found = [str(site), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(found),
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "SOCKET_LOG": str(tmp_path / "sockets.log"),
    }


def call(env: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*CLI, *words], capture_output=True, text=True, cwd=cwd, env=env, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stderr}\n{log(cwd)}"
    return done


def log(cwd: Path) -> list[str]:
    return (cwd / "sockets.log").read_text().splitlines()


def test_the_watch_works(watched: dict[str, str], tmp_path: Path):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"
    assert subprocess.run([sys.executable, "-c", code], env=watched, capture_output=True).returncode == 1
    assert any("create_connection" in line or "getaddrinfo" in line for line in log(tmp_path))


def test_a_bundle_is_made_checked_trained_on_and_reported_without_a_socket(watched: dict[str, str], tmp_path: Path):
    call(watched, tmp_path, "bundle", "make", "--tasks", "glue/rte", "--model", "demo-t5", "--data", "demo", "b")
    call(watched, tmp_path, "bundle", "verify", "b")
    run = ("run", *SMALL, "--tasks", "glue/rte", "--data", "b/data", "--model", "b/models/demo-t5", "--workers", "1")
    call(watched, tmp_path, *run, "--out", "out", "--as", "markdown,html,csv,charts")
    call(watched, tmp_path, "report", "out")
    (record,) = RunFolder(tmp_path / "out").records().values()
    assert record.status == "ok"
    armed = {line.split()[0] for line in log(tmp_path) if line.endswith("armed")}
    assert str(record.provenance["pid"]) in armed and len(armed) >= 5, "the worker was watched too"
    assert [line for line in log(tmp_path) if not line.endswith("armed")] == []


def test_the_demo_is_trained_on_without_a_socket(watched: dict[str, str], tmp_path: Path):
    call(watched, tmp_path, "run", *SMALL, "--tasks", "glue/rte,commonsense/piqa", "--workers", "1", "--out", "out")
    (record,) = RunFolder(tmp_path / "out").records().values()
    assert record.status == "ok" and str(record.provenance["pid"]) in {line.split()[0] for line in log(tmp_path)}
    assert [line for line in log(tmp_path) if not line.endswith("armed")] == []
