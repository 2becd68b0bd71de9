"""GPUs as NVML, nvidia-smi or the driver's files tell them: stand-ins for the library and the tool are found instead."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_worker import ALLOCATOR, COMMAND, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.executor import DEVICE_WHY, Launch
from mtlbench.cells.provenance import gpu_facts
from mtlbench.errors import RequestError
from mtlbench.executors import devices
from mtlbench.executors.devices import Nvidia, nvml_gpus
from mtlbench.executors.local import LocalExecutor

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


EIGHT = """#!/bin/sh
case "$1" in
-L) for i in 0 1 2 3; do
      [ $MODE = lost ] && [ $i = 3 ] && { echo "Unable to determine the device handle for GPU3: GPU is lost."; continue; }
      echo "GPU $i: NVIDIA H100 80GB HBM3 (UUID: GPU-$i)"; done;;
*) for i in 0 1 2 3; do echo "GPU-$i, 81559, 3"; done;;
esac
[ $MODE = lost ] && exit 15
[ $MODE = inforom ] && { echo "WARNING: infoROM is corrupted at gpu 0000:5D:00.0"; exit 14; }
exit 0
"""
INFORMATION = """Model: \t\t NVIDIA H200
IRQ:   \t\t 0
GPU UUID: \t GPU-proc
Bus Location: \t 0000:5d:00.0
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine without NVML, whose nvidia-smi is ``tool`` and whose driver has the files in ``proc``."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "proc").mkdir()

    def write(tool: str = "", mode: str = "fine", **environ: str) -> Nvidia:
        monkeypatch.setenv("MODE", mode)
        if tool:
            (tmp_path / "bin" / "nvidia-smi").write_text(tool)
            (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin" if tool else str(tmp_path / "bin")
        return Nvidia({"PATH": path, **environ}, proc=tmp_path / "proc", dev=tmp_path)

    return write


def driver(tmp_path: Path) -> None:
    """Files of a loaded driver."""
    folder = tmp_path / "proc" / "gpus" / "0000:5d:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(INFORMATION)
    (tmp_path / "proc" / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1")


@pytest.mark.parametrize(("mode", "ids"), [("fine", "0123"), ("inforom", "0123"), ("lost", "012")])
def test_what_nvidia_smi_lists_counts_whatever_its_exit_code(plain, mode: str, ids: str) -> None:
    found = plain(EIGHT, mode).devices()
    assert [device.id for device in found] == [f"GPU-{number}" for number in ids]
    assert {device.memory for device in found} == {81559 * 2**20}


def test_the_files_of_the_driver_are_read_where_nothing_else_answers(plain, tmp_path: Path, monkeypatch) -> None:
    driver(tmp_path)
    (found,) = plain().devices()
    assert (found.id, found.name, found.memory) == ("GPU-proc", "NVIDIA H200", None)
    monkeypatch.setattr(devices, "ANSWER_S", 0.5)
    assert [device.id for device in plain("#!/bin/sh\nexec sleep 30\n").devices()] == ["GPU-proc"]
    assert [device.id for device in plain("#!/bin/sh\nexit 9\n").devices()] == ["GPU-proc"]


def test_a_tool_that_hangs_is_a_wrong_request_where_nothing_else_answers(plain, monkeypatch) -> None:
    monkeypatch.setattr(devices, "ANSWER_S", 0.5)
    with pytest.raises(RequestError, match="does not answer"):
        plain("#!/bin/sh\nexec sleep 30\n").devices()


def test_a_gpu_that_cannot_be_used_is_told_in_one_sentence_with_the_fix(plain, tmp_path: Path, monkeypatch) -> None:
    assert plain().unusable() is None, "no GPU at all"
    built = tmp_path / "version.py"
    built.write_text("__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n")
    assert devices.torch_without_gpu(built) == (
        "torch 2.9.0+cpu is built without CUDA. Install a build with CUDA, or say --device cpu"
    )
    for gpu in ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None", "cuda = None\nhip = '6.4'"):
        built.write_text(f"__version__ = '2.9.0'\n{gpu}\n")
        assert devices.torch_without_gpu(built) is None
    monkeypatch.setattr(devices, "torch_without_gpu", lambda: None)
    assert plain(EIGHT).unusable() is None
    (tmp_path / "bin" / "nvidia-smi").unlink()
    (tmp_path / "nvidia0").touch()
    assert "nvidia0 shows an NVIDIA GPU, but neither NVML nor nvidia-smi lists one" in plain().unusable()
    monkeypatch.setattr(devices, "torch_without_gpu", lambda: "torch 2 is built without CUDA. Install one")
    assert plain().unusable() == "this machine has an NVIDIA GPU, but torch 2 is built without CUDA. Install one"
    assert plain(EIGHT, CUDA_VISIBLE_DEVICES="").unusable() is None, "hidden on purpose"


def test_auto_says_that_it_takes_the_processor_and_why(plain, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(devices, "torch_without_gpu", lambda: "torch 2 is built without CUDA. Install one")
    folder, request = toy_folder(tmp_path / "run", [toy_cell()])
    executor = LocalExecutor(command=COMMAND, inventory=plain(EIGHT))
    workers = executor.start(Launch(folder=folder.path, request=request, workers=0, device="auto"))
    wait_for(lambda: workers.alive() == 0)
    assert "a GPU is not used: this machine has an NVIDIA GPU, but torch 2 is built without CUDA" in caplog.text
    (record,) = folder.records().values()
    assert record.notes["CUDA_VISIBLE_DEVICES"] == "" and record.notes[DEVICE_WHY].startswith("this machine has")
    with pytest.raises(RequestError, match="--device cuda: this machine has an NVIDIA GPU, but torch 2"):
        executor.check("cuda")


def test_unlike_cards_are_told_apart_by_number_where_cuda_counts_as_the_driver(plain) -> None:
    unlike = EIGHT.replace("GPU $i: NVIDIA H100 80GB HBM3", "GPU $i: NVIDIA card $i")
    found = plain(unlike, CUDA_VISIBLE_DEVICES="2,0").devices()
    assert [(device.id, device.uuid) for device in found] == [("2", ""), ("0", "")], "CUDA may count otherwise"
    found = plain(unlike, CUDA_VISIBLE_DEVICES="2,0", CUDA_DEVICE_ORDER="PCI_BUS_ID").devices()
    assert [(device.id, device.uuid) for device in found] == [("2", "GPU-2"), ("0", "GPU-0")]


@pytest.mark.parametrize("own", [None, "max_split_size_mb:128"])
def test_workers_on_gpus_have_segments_that_grow_unless_told_otherwise(tmp_path: Path, monkeypatch, own) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)
    folder, request = toy_folder(tmp_path / "run", [toy_cell()])
    executor = LocalExecutor(command=COMMAND, inventory=Cards())
    workers = executor.start(Launch(folder=folder.path, request=request, workers=0, device="cuda"))
    wait_for(lambda: workers.alive() == 0)
    (record,) = folder.records().values()
    seen = [record.notes[name] for name in ALLOCATOR]
    assert seen == ([None, own] if own else ["expandable_segments:True"] * 2)


class Cards:
    """One GPU."""

    def devices(self) -> tuple[devices.Device, ...]:
        return (devices.Device(id="one", uuid=f"one-{time.time_ns()}"),)


def test_a_record_says_which_gpu_driver_and_cuda_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="0a1b-2c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Tue Mar 18 2025\nGCC version: 13")
    facts = gpu_facts(torch.device("cuda"), version)
    assert facts == {"gpu_uuid": "GPU-0a1b-2c", "driver": "570.133.20", "cuda": "12.8"}
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build")
    assert gpu_facts(torch.device("cuda"), version)["driver"] == "550.54.15"
    assert gpu_facts(torch.device("cpu"), version) == {}
