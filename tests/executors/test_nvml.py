"""GPUs as NVML tells them: a stand-in for the library, a file ``pynvml.py``, is found in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtlbench.executors.devices import Nvidia, nvml_gpus

STAND_IN = """
from types import SimpleNamespace

nvmlMemory_v2 = 0x2000028
ON, COUNT = {on}, {count}


class NVMLError(Exception):
    pass


def nvmlInit():
    if not ON:
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return COUNT


def nvmlDeviceGetHandleByIndex(at):
    if at == 2:
        raise NVMLError("GPU is lost")
    return ["GPU-aaaa", "GPU-bbbb"][at]


def nvmlDeviceGetMaxMigDeviceCount(gpu):
    if gpu == "GPU-bbbb":
        raise NVMLError("Not Supported")
    return 3


def nvmlDeviceGetMigDeviceHandleByIndex(gpu, at):
    if at == 1:
        raise NVMLError("Not Found")
    return f"MIG-{{at}}"


def nvmlDeviceGetUUID(handle):
    return handle


def nvmlDeviceGetName(handle):
    return "NVIDIA H200" if handle == "GPU-bbbb" else "NVIDIA A100-SXM4-40GB MIG 3g.20gb"


def nvmlDeviceGetMemoryInfo(handle, version):
    assert version == nvmlMemory_v2
    if handle == "MIG-2":
        raise NVMLError("Not Supported")
    return SimpleNamespace(total=1000, reserved=30, used=7)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(*, on: bool = True, count: int = 3) -> None:
        (tmp_path / "pynvml.py").write_text(STAND_IN.format(on=on, count=count))
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    sys.modules.pop("pynvml", None)


@pytest.fixture
def text(tmp_path: Path) -> dict[str, str]:
    """An environment whose ``nvidia-smi`` knows one other GPU."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n[ $1 = -L ] && echo 'GPU 0: NVIDIA T4 (UUID: GPU-text)'\n")
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:/usr/bin:/bin"}


def test_parts_stand_for_their_gpu_and_a_lost_gpu_is_left_out(install, text) -> None:
    install()
    assert [(d.id, d.uuid, d.name, d.memory, d.used) for d in Nvidia(text).devices()] == [
        ("MIG-0", "MIG-0", "MIG 3g.20gb", 1000, 7),
        ("MIG-2", "MIG-2", "MIG 3g.20gb", None, 0),
        ("GPU-bbbb", "GPU-bbbb", "NVIDIA H200", 1000, 7),
    ]
    assert [d.id for d in Nvidia({**text, "CUDA_VISIBLE_DEVICES": "2"}).devices()] == ["2"]
    assert [d.uuid for d in Nvidia({**text, "CUDA_VISIBLE_DEVICES": "GPU-b"}).devices()] == ["GPU-bbbb"]


def test_a_driver_without_gpus_is_believed(install, text) -> None:
    install(count=0)
    assert Nvidia(text).devices() == () and Nvidia({**text, "CUDA_VISIBLE_DEVICES": "0"}).devices() == ()


def test_the_text_is_read_where_nvml_finds_no_driver(install, text) -> None:
    install(on=False)
    assert nvml_gpus() is None
    assert [d.id for d in Nvidia(text).devices()] == ["GPU-text"]


def test_the_text_is_read_where_nvml_is_not_installed(monkeypatch: pytest.MonkeyPatch, text) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_gpus() is None
    assert [d.id for d in Nvidia(text).devices()] == ["GPU-text"]
