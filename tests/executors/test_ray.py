"""Ray: actors on a cluster of several nodes in processes of this machine, nodes of which are killed."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.executor import Launch
from mtlbench.errors import RequestError
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.options import executor_of
from mtlbench.executors.ray import RayExecutor, RayWorkers
from mtlbench.executors.runner import run
from mtlbench.planning.request import read_devices
from mtlbench.store import RunFolder

EXECUTOR = RayExecutor(command=COMMAND)


def essence(folder: RunFolder) -> dict[str, Any]:
    """The records but for what tells where and when they were made."""
    found = {}
    for key, record in folder.records().items():
        notes = {name: value for name, value in record.notes.items() if name in ("loss",)}
        found[key] = replace(record, provenance={}, notes=notes).to_json()
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_ray(name: str, *more: Any, **words: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *more, **words)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    with pytest.raises(RequestError, match=r"pip install 'mtlbench\[ray\]'"):
        RayExecutor().check("auto")


def test_its_settings_are_read() -> None:
    assert executor_of("ray[address=10.0.0.1:6379,cpus=2]") == RayExecutor(address="10.0.0.1:6379", cpus=2.0)


def alive_on_its_first_attempt(folder: RunFolder) -> int:
    """Process id of a worker whose death is the first one of its cell: a cell is not run a third time."""
    found: list[int] = []

    def one_more() -> bool:
        claims = [claim for claim in folder.claims().values() if claim.deaths == 0]
        found.extend(claim.owner.pid for claim in claims if Path(f"/proc/{claim.owner.pid}").exists())
        return bool(found)

    wait_for(one_more, seconds=60)
    return found[0]


@pytest.mark.slow
def test_a_killed_node_and_a_killed_worker_lose_no_cell(tmp_path: Path, cluster: Any) -> None:
    second = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    cells = [*(toy_cell(seed, seconds=2.0) for seed in range(8)), toy_cell(9, do="fail")]
    folder, request = toy_folder(tmp_path / "run", cells)
    workers = EXECUTOR.start(Launch(folder=folder.path, request=request, workers=0, device="cpu"))
    assert isinstance(workers, RayWorkers)
    wait_for(lambda: len(folder.claims()) == 3, seconds=120)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: workers.alive() and len(folder.records()) >= 2, seconds=120)
    os.kill(alive_on_its_first_attempt(folder), signal.SIGKILL)
    wait_for(lambda: workers.alive() == 0, seconds=180)
    workers.stop(grace_s=5)
    assert len(folder.records()) == 9 and not folder.claims()
    assert max(map(ran(folder).count, ran(folder))) == 2, "what was lost ran twice, the rest once"
    local, request = toy_folder(tmp_path / "local", cells)
    assert run(local, request, cells, LocalExecutor(command=COMMAND), {}, device="cpu", workers=3) == 1
    assert essence(folder) == essence(local)


@pytest.mark.slow
def test_a_cluster_of_gpus_gives_each_cell_the_number_it_asks_for(tmp_path: Path, cluster: Any) -> None:
    cluster.add_node(num_cpus=4, num_gpus=4)
    cluster.wait_for_nodes()
    cells = [toy_cell(seed, seconds=2.0) for seed in range(4)] + [toy_cell(0, seconds=2.0, method="pair")]
    folder, request = toy_folder(tmp_path / "run", cells)
    devices = read_devices("1,pair=2")
    launch = Launch(folder=folder.path, request=request, workers=3, device="auto", devices=devices)
    workers = EXECUTOR.start(launch)
    import ray

    wait_for(lambda: ray.available_resources().get("GPU", 0) == 0, seconds=60)
    wait_for(lambda: workers.alive() == 0, seconds=120)
    workers.stop(grace_s=5)
    assert {record.status for record in folder.records().values()} == {"ok"} and len(folder.records()) == 5
    with pytest.raises(RequestError, match="asks for 8 GPUs for one cell, and the cluster has 4"):
        EXECUTOR.start(replace(launch, devices=read_devices("8")))


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from toy_worker import COMMAND
from mtlbench.executors.ray import RayExecutor
from mtlbench.executors.runner import run
from mtlbench.store import RunFolder
folder = RunFolder(Path(sys.argv[1]))
cells = folder.cells(sys.argv[2])
sys.exit(run(folder, sys.argv[2], cells, RayExecutor(command=COMMAND), {{}}, device="cpu", workers=2))
"""


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_with_it_and_the_next_one_completes(tmp_path: Path, cluster: Any) -> None:
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    cells = [toy_cell(seed, seconds=1.5) for seed in range(6)]
    folder, request = toy_folder(tmp_path / "run", cells)
    code = DRIVER.format(path=sys.path)
    words = [sys.executable, "-c", code, str(folder.path), request]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as driver:
        wait_for(lambda: folder.records() and len(folder.claims()) == 2, seconds=120)
        pids = [claim.owner.pid for claim in folder.claims().values()]
        driver.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    finished = set(folder.records())
    assert 0 < len(finished) < 6
    again = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
    assert again.returncode == 0, again.stderr
    assert len(folder.records()) == 6 and all(ran(folder).count(key) == 1 for key in finished)


@pytest.mark.slow
def test_a_killed_head_loses_nothing_and_the_next_command_completes_without_it(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells on other nodes go on until Ray ends them; then the local executor takes over on the same run folder."""
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    cells = [toy_cell(seed, seconds=3.0) for seed in range(12)]
    folder, request = toy_folder(tmp_path / "run", cells)
    script = DRIVER.format(path=sys.path)
    words = [sys.executable, "-c", script, str(folder.path), request]
    # How long the driver waits for a head that is gone; a minute where nobody says.
    environment = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: folder.records() and len(folder.claims()) == 2, seconds=120)
        pids = [claim.owner.pid for claim in folder.claims().values()]
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        before = len(folder.records())
        wait_for(lambda: len(folder.records()) > before, seconds=60)
        cluster.remove_node(other, allow_graceful=False)
        code = driver.wait(timeout=180)
    finally:
        driver.kill()
        driver.wait()
    assert code != 0, "it says that it did not finish"
    wait_for(lambda: not any(alive(pid) for pid in pids), seconds=180)
    finished = folder.records()
    assert 0 < len(finished) < 12
    monkeypatch.delenv("RAY_ADDRESS")
    assert run(folder, request, cells, LocalExecutor(command=COMMAND), {}, device="cpu", workers=6) == 0
    assert all(folder.records()[key] == record and ran(folder).count(key) == 1 for key, record in finished.items())
    local, request = toy_folder(tmp_path / "local", cells)
    assert run(local, request, cells, LocalExecutor(command=COMMAND), {}, device="cpu", workers=6) == 0
    assert essence(folder) == essence(local) and folder.claims() == {}
