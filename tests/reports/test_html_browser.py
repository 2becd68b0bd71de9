"""The page in a real browser: no errors, no requests, and tables, links and charts that answer to the mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn_studies import hostile, whole
from headless_chromium import CHROMIUM, Page

from mtlbench.plugins import load_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH")

TABLES = {"scores": 0, "differences": 1, "over tasks": 2, "costs": 3, "cells": 4}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {name: folder / f"{name}.html" for name in ("whole", "hostile")}
    for name, study in (("whole", whole()), ("hostile", hostile())):
        made[name].write_text(load_report("html").render(study)["report.html"])
    return made


@pytest.fixture
def shown(browser: Page, pages: dict[str, Path]) -> Iterator[Page]:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(pages["whole"].as_uri())
    yield browser
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("file://")] == []


def column(page: Page, table: str, at: int) -> list[str]:
    script = f"Array.from(document.querySelectorAll('table.data')[{TABLES[table]}].tBodies[0].rows)"
    return page.run(f"{script}.filter(row => !row.hidden).map(row => row.cells[{at}].textContent)")


def head(table: str, at: int) -> str:
    return f"document.querySelectorAll('table.data')[{TABLES[table]}].tHead.rows[0].cells[{at}].querySelector('button')"


def test_a_click_on_a_head_sorts_and_rows_without_a_value_stay_last(shown: Page):
    before = column(shown, "scores", 0)
    assert before[:2] == ["peml", "multilora[rank=16]"]
    shown.click(head("scores", 0))
    names = column(shown, "scores", 0)
    assert names[:2] == ["base", "lora"] and names.index("multilora[rank=8]") + 1 == names.index("multilora[rank=16]")
    body = "document.querySelector('table.data').tBodies[0]"
    shown.run(f"{body}.prepend(...Array.from({body}.rows).filter((row, at) => at % 2)); 0")
    for direction in ("descending", "ascending"):
        shown.click(head("scores", 4))
        assert shown.run(f"{head('scores', 4)}.parentElement.getAttribute('aria-sort')") == direction
        averages = column(shown, "scores", 4)
        numbers = [float(value.partition(" ")[0]) for value in averages if value != "–"]
        assert numbers == sorted(numbers, reverse=direction == "descending") and averages[-3:] == ["–"] * 3


def test_memory_sorts_by_its_size_and_not_by_its_letters(shown: Page):
    shown.click(head("costs", 5))
    sizes = [float(value.split()[0]) for value in column(shown, "costs", 5)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 8


def test_words_typed_into_a_filter_leave_the_rows_that_have_them(shown: Page):
    total = len(column(shown, "cells", 0))
    box = f"document.querySelectorAll('.filter input')[{TABLES['cells']}]"
    shown.click(box)
    shown.type("LORA failed")
    assert column(shown, "cells", 0) == ["mtl_lora"]
    assert column(shown, "cells", 3) == ["oom: CUDA out of memory"]
    assert shown.run(f"{box}.nextSibling.textContent") == f"1 of {total} rows"


def test_a_number_leads_to_its_cells_and_on_to_the_record(shown: Page):
    shown.click(f"document.querySelectorAll('.filter input')[{TABLES['cells']}]")
    shown.type("nothing has this")
    shown.click("document.querySelector('table.data td.number a')")
    place = shown.until("location.hash.slice(1)")
    assert shown.run(f"document.getElementById('{place}').cells[0].textContent") == "peml"
    shown.until(f"!document.getElementById('{place}').hidden")
    shown.click(f"document.getElementById('{place}').querySelector('td a')")
    opened = "document.querySelector('details:target')"
    shown.until(f"{opened} && {opened}.open")
    assert "peml, seed 0" in shown.run(f"{opened}.innerText")
    shown.until(f"{opened}.getBoundingClientRect().top > -1 && {opened}.getBoundingClientRect().top < innerHeight")


def test_a_failed_cell_shows_its_reason(shown: Page):
    shown.click("document.querySelector('tr.failed td a')")
    shown.until("document.querySelector('details:target[open]')?.innerText")
    told = shown.run("document.querySelector('details:target').innerText")
    assert "mtl_lora, seed 0: failed" in told and "oom: CUDA out of memory. Lower --micro-batch." in told


def test_the_point_under_the_pointer_has_its_value(shown: Page):
    found = shown.run(
        "(() => { const svg = document.querySelector('svg'); const part = svg.querySelector('.value use');"
        "part.scrollIntoView({block: 'center'}); const box = part.getBoundingClientRect();"
        "const under = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
        "return under.closest('.value').querySelector('title').textContent; })()"
    )
    assert "average" in found and "trainable parameters" in found


def test_hostile_names_run_nothing(browser: Page, pages: dict[str, Path]):
    browser.errors.clear()
    browser.open(pages["hostile"].as_uri())
    assert browser.errors == []
    assert browser.run("document.scripts.length") == 1 and browser.run("document.images.length") == 0
    assert "<script>alert(1)</script>" in browser.run("document.body.innerText")
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">')")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("window.ran") is None, "the policy keeps a handler from running even where one would get in"
