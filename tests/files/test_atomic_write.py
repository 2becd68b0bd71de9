"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.files.temporary import atomic_write, sweep


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_and_a_folder_take_their_place_at_the_end(tmp_path: Path, durable: bool) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    with atomic_write(file, durable=durable) as made:
        made.write_text("new")
        assert file.read_text() == "old"
    with atomic_write(folder, durable=durable) as made:
        (made / "inner").mkdir(parents=True)
        (made / "inner" / "one").write_text("1")
        assert not folder.exists()
    assert file.read_text() == "new" and (folder / "inner" / "one").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_after_an_error_everything_is_as_it_was(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    with pytest.raises(KeyError), atomic_write(file) as made:
        made.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), atomic_write(folder) as made:
        made.mkdir()
        raise KeyError
    with pytest.raises(FileNotFoundError), atomic_write(file):
        pass  # nothing was written
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_killed_writer_leaves_a_file_that_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mtlbench.files.temporary import atomic_write\n"
        "with atomic_write(Path(sys.argv[1]) / 'file') as made:\n"
        "    made.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    assert sweep(tmp_path) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_durable_write_waits_for_the_content_and_for_its_name(tmp_path: Path) -> None:
    synced: list[str] = []

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and watching and not isinstance(args[0], int):
            path = os.fspath(args[0])  # type: ignore[call-overload]
            if path.startswith(str(tmp_path)):  # other threads, such as heartbeats of other tests, open files of theirs
                synced.append(path)

    watching = False
    sys.addaudithook(watch)
    with atomic_write(tmp_path / "file") as made:
        made.write_text("x")
        watching = True
    watching = False
    assert synced == [str(made), str(tmp_path)]
