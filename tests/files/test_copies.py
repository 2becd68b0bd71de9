"""Work shared out to copies of the process."""

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import alive, children
from waiting import wait_for

from mtlbench.errors import MtlbenchError
from mtlbench.files.copies import in_copies

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are only made on Linux")


def test_results_come_in_order_from_processes_that_hold_what_is_loaded_here():
    held = {at: object() for at in range(20)}

    def work(at: int) -> tuple[int, bool, int]:
        time.sleep(0.01 * (at % 3))
        return at, at in held, os.getpid()

    with in_copies(work, range(20), copies=3) as results:
        found = results()
    assert [(at, there) for at, there, _ in found] == [(at, True) for at in range(20)]
    assert len({pid for _, _, pid in found}) > 1 and os.getpid() not in {pid for _, _, pid in found}


@pytest.mark.parametrize(("items", "copies"), [([], 4), ([1], 4), ([1, 2], 1)])
def test_what_is_not_worth_a_copy_is_done_here_when_it_is_asked_for(items, copies):
    seen = []
    with in_copies(seen.append, items, copies=copies) as results:
        assert seen == []
        assert results() == [None] * len(items)
    assert seen == items


def test_inside_a_copy_the_work_is_done_there():
    def outer(at: int) -> tuple[int, list[int]]:
        with in_copies(lambda _: os.getpid(), range(3), copies=3) as results:
            return os.getpid(), results()

    with in_copies(outer, range(2), copies=2) as results:
        assert all(inner == [pid] * 3 for pid, inner in results())


def test_results_larger_than_a_pipe_do_not_keep_the_others_waiting():
    with in_copies(lambda at: bytes([at]) * 2**20, range(6), copies=2) as results:
        time.sleep(0.2)
        assert [(data[0], len(data)) for data in results()] == [(at, 2**20) for at in range(6)]


def test_an_error_is_raised_here_with_the_place_it_came_from():
    def work(at: int) -> int:
        if at >= 3:
            raise KeyError(f"item {at}")
        return at

    with in_copies(work, range(6), copies=2) as results, pytest.raises(KeyError, match="item 3") as caught:
        results()
    assert "in work" in str(caught.value.__cause__)


def test_a_copy_killed_while_others_still_get_items_is_named():
    def work(at: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with in_copies(work, range(20_000), copies=2) as results, pytest.raises(MtlbenchError, match="exit code -9"):
        results()


def test_a_killed_copy_is_named_and_nothing_waits_for_it():
    def work(at: int) -> int:
        if at == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return at

    with in_copies(work, range(4), copies=2) as results, pytest.raises(MtlbenchError, match="exit code -9"):
        results()


def test_copies_end_with_the_context():
    before = children(os.getpid())
    with in_copies(time.sleep, [600.0, 600.0], copies=2):
        copies = set(children(os.getpid())) - set(before)
        assert len(copies) == 2
    assert not any(map(alive, copies))


KILLED = """
import os, signal, sys, time
from mtlbench.files.copies import in_copies
def work(at):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(1)
    return bytes(2**20)
with in_copies(work, range(2), copies=2) as results:
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_copies_end_with_their_process():
    words = [sys.executable, "-c", KILLED]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        copies = [int(process.stdout.readline()) for _ in range(2)]
        process.communicate("both work\n")  # returns once no copy holds the output open
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: not any(map(alive, copies)))
