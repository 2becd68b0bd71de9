"""Reports, observers and executors that are wrong are named, and harm nobody; `check` finds each fault."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from record_builder import cell, done
from test_plugins import install

from mtlbench.api.executor import Launch
from mtlbench.conformance.others import plugin_findings, sample_studies
from mtlbench.errors import PluginError, RequestError
from mtlbench.executors.options import executor_of
from mtlbench.plugins import load_observers, load_report
from mtlbench.results.documents import write_reports
from mtlbench.store import RunFolder

REPORT = """
    import time
    from mtlbench import Report, hookimpl

    class Odd(Report):
        name = "odd"
        def render(self, study):
            {body}

    @hookimpl
    def mtlbench_reports():
        return [Odd()]
"""
EXECUTOR = """
    from mtlbench import Executor, Workers, hookimpl

    class Lazy(Workers):
        {alive}
        def stop(self, *, grace_s): pass

    class Odd(Executor):
        name = "odd"
        def start(self, launch):
            {body}

    @hookimpl
    def mtlbench_executors():
        return [Odd()]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(folder))]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with one record."""
    made = RunFolder(tmp_path / "run")
    made.preflight()
    of = cell("lora", 0)
    made.put_request({}, [of])
    claim = made.claim(of.key)
    assert claim is not None
    made.publish(done(of, 60.0, 50.0), claim)
    made.release(claim)
    return made


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no luck')", r"failed in render: ValueError: no luck \(odd_report.py:8 in render\)"),
        ("raise SystemExit(3)", r"sys.exit\(3\) was called"),
        ("return 'text'", "returns 'str'"),
        ("return None", "returns 'NoneType'"),
        ("return {}", "returns no document"),
        ("return {'a.txt': 5}", "'a.txt' is int, not text or bytes"),
        ("return {'../../escape.txt': ''}", "names a document '../../escape.txt'"),
        ("return {'/tmp/escape.txt': ''}", "names a document '/tmp/escape.txt'"),
        ("return {'C:/x.txt': ''}", "names a document 'C:/x.txt'"),
        ("return {5: ''}", "names a document 5"),
        ("return {'REPORT.md': ''}", "would overwrite 'REPORT.md', which the report 'markdown' wrote"),
    ],
)
def test_a_report_that_is_wrong_is_named_and_the_others_are_written(site, folder, tmp_path, body, message):
    install(
        site, "odd-pkg", points={"reports": {"odd": "odd_report"}}, modules={"odd_report": REPORT.format(body=body)}
    )
    written: list[str] = []
    reports = [load_report(name) for name in ("markdown", "odd", "csv")]
    with pytest.raises(PluginError, match=message) as error:
        write_reports(folder, reports, draws=0, tell=lambda one: written.extend(path.name for path in one.paths))
    assert "The report 'odd' of odd-pkg 1.2.3" in str(error.value)
    assert {"report.md", "scores.csv"} <= set(written)
    assert not list(tmp_path.glob("escape*"))


def test_documents_may_lie_in_folders_of_their_own(site, folder):
    body = "return {'figures/one.txt': 'x', 'all.txt': b'y'}"
    install(
        site, "odd-pkg", points={"reports": {"odd": "odd_report"}}, modules={"odd_report": REPORT.format(body=body)}
    )
    write_reports(folder, [load_report("odd")], draws=0, tell=lambda one: None)
    assert (folder.path / "report" / "figures" / "one.txt").read_text() == "x"


def test_a_place_that_cannot_be_written_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nope")):
        with pytest.raises(RequestError, match="cannot be written to .* with --to"):
            write_reports(folder, [load_report("markdown")], place, draws=0, tell=lambda one: None)


@pytest.mark.parametrize(
    ("body", "check", "message"),
    [
        ("return {'a.txt': study.tables[0].title}", "render", "raised IndexError|failed in render: IndexError"),
        ("return {'a.txt': str(time.perf_counter())}", "render", "one study into different documents"),
    ],
)
def test_check_finds_what_a_report_does_wrong_with_some_study(site, body, check, message):
    install(
        site, "odd-pkg", points={"reports": {"odd": "odd_report"}}, modules={"odd_report": REPORT.format(body=body)}
    )
    *_, last = plugin_findings("reports", "odd")
    assert (last.check, last.outcome) == (check, "failed") and re.search(message, last.message), last
    assert all(f.outcome == "ok" for f in plugin_findings("reports", "markdown"))
    assert [len(study.tables) for study in sample_studies().values()] == [1, 1, 2, 1, 0]


@pytest.mark.parametrize(
    ("alive", "body", "message"),
    [
        (
            "def alive(self): return 0",
            "return None",
            "start returns None; it must return an instance of mtlbench.Workers",
        ),
        ("", "return Lazy()", "failed in start: TypeError: Can't instantiate abstract class Lazy"),
        (
            "def alive(self): return 0",
            "raise OSError('no room')",
            r"failed in start: OSError: no room \(odd_executor.py",
        ),
        ("def alive(self): return 'one'", "return Lazy()", "alive returns 'one'"),
        ("def alive(self): return 0", "return Lazy()", "no worker is left and the cell has no record"),
    ],
)
def test_an_executor_that_is_wrong_is_named(site, folder, alive, body, message):
    text = EXECUTOR.format(alive=alive, body=body)
    install(site, "odd-pkg", points={"executors": {"odd": "odd_executor"}}, modules={"odd_executor": text})
    *_, last = plugin_findings("executors", "odd")
    assert (last.check, last.outcome) == ("run", "failed") and re.search(message, last.message), last
    if "no record" not in message:
        launch = Launch(folder=folder.path, request="r", workers=1)
        with pytest.raises(PluginError, match="The executor 'odd' of odd-pkg 1.2.3"):
            executor_of("odd").start(launch).alive()


def test_an_observer_that_cannot_be_loaded_is_named_and_left_out(site):
    broken = {"odd_observer": "import no_such_library"}
    install(site, "odd-pkg", points={"observers": {"odd": "odd_observer"}}, modules=broken)
    typo = {"typo_observer": "from mtlbench import hookimpl\n@hookimpl\ndef mtlbench_cell_begun(cell): ..."}
    install(site, "typo-pkg", points={"observers": {"typo": "typo_observer"}}, modules=typo)
    told: list[str] = []
    assert set(load_observers(told.append)) == {"progress"}
    assert "Left out: The observer 'odd' of odd-pkg 1.2.3 cannot be imported" in told[0]
    assert "Left out: The observer 'typo' of typo-pkg 1.2.3 does not fit a hook" in told[1]
    assert [f.outcome for f in plugin_findings("observers", "odd")] == ["failed"]


def test_an_observer_that_raises_or_hears_nothing_fails_its_check(site):
    raising = "from mtlbench import hookimpl\n@hookimpl\ndef mtlbench_step_finished(row_losses): row_losses.item()"
    install(site, "odd-pkg", points={"observers": {"odd": "odd_observer"}}, modules={"odd_observer": raising})
    found = plugin_findings("observers", "odd")
    assert [f.outcome for f in found] == ["ok", "ok", "failed"] and "(odd_observer.py:3 in" in found[-1].message
    install(site, "deaf-pkg", points={"observers": {"deaf": "deaf_observer"}}, modules={"deaf_observer": "x = 1"})
    (found,) = plugin_findings("observers", "deaf")
    assert "implements no event hook" in found.message


def test_a_field_without_a_default_and_one_object_instead_of_a_list_are_said(site):
    from test_plugins import GOOD

    from mtlbench.plugins import load_method

    needy = GOOD.format(name="needy").replace('source = "none"', 'source = "none"\n        rank: int')
    install(site, "needy-pkg", points={"methods": {"needy": "needy_module"}}, modules={"needy_module": needy})
    with pytest.raises(PluginError, match=r"its setting rank has no default.*rank: int = 8"):
        load_method("needy")
    single = GOOD.format(name="single").replace("return [Toy]", "return Toy")
    install(site, "single-pkg", points={"methods": {"single": "single_module"}}, modules={"single_module": single})
    with pytest.raises(PluginError, match=r"it must return a list, such as \[Toy\]"):
        load_method("single")
