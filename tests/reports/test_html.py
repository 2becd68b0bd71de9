"""The page as a parser reads it: whole, self-contained, linked inside, and with nothing of a name or message in its markup."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from drawn_studies import HOSTILE, TASKS, hostile, row, several, steps, whole
from record_builder import cell, failed

from mtlbench.plugins import load_report
from mtlbench.results.study import study_of
from mtlbench_reports.html.markup import Markup, el, join

VOID = {"meta", "path", "use", "rect", "circle"}


class Document(HTMLParser):
    """Elements in order, as (tag, attributes, text directly inside)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._open.append(len(self.elements))
        self.elements.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        while self.elements[self._open[-1]][0] in ("meta",) and tag != "meta":
            self._open.pop()
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (found, "".join(text))
            for name, found, text in self.elements
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]


def page(study) -> str:
    documents = load_report("html").render(study)
    assert list(documents) == ["report.html"]
    return documents["report.html"]


@pytest.fixture(scope="module")
def text() -> str:
    return page(whole())


@pytest.fixture(scope="module")
def hostile_text() -> str:
    return page(hostile())


@pytest.mark.parametrize("made", ["text", "hostile_text"])
def test_ids_are_unique_links_lead_somewhere_and_nothing_is_fetched(made, request):
    document = Document(request.getfixturevalue(made))
    ids = Counter(found["id"] for _, found, _ in document.elements if "id" in found)
    assert not [name for name, count in ids.items() if count > 1]
    for tag, found, _ in document.elements:
        for name in ("href", "src", "action", "srcset", "data", "poster", "xlink:href", "background"):
            assert found.get(name, "#").startswith("#"), (tag, found)
        target = found.get("href")
        assert target is None or target[1:] in ids, (tag, target)
        used = re.findall(r"url\(([^)]*)\)", " ".join(str(value) for value in found.values()))
        assert all(name.strip("'\"#") in ids and name.lstrip("'\"").startswith("#") for name in used), used
    style = "".join(text for _, text in document.all("style"))
    assert "@import" not in style and "url(" not in style


def test_the_policy_allows_the_pages_own_script_and_nothing_else(text):
    document = Document(text)
    ((_, script),) = document.all("script")
    policy = next(found["content"] for found, _ in document.all("meta") if "http-equiv" in found)
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{known}'" in policy and policy.startswith("default-src 'none'")


def test_every_number_of_the_tables_leads_to_its_cells(text):
    document = Document(text)
    links = {found["href"] for found, _ in document.all("a")}
    records = [found["id"] for found, _ in document.all("details") if (found.get("class") or "").startswith("record")]
    assert len(records) == 2 * 8 + 3 and {f"#{name}" for name in records} <= links
    values = [found for found, _ in document.all("td") if "data-value" in found]
    assert len(values) > 100 and all(float(found["data-value"] or "") == float(found["data-value"]) for found in values)


def test_records_hold_scores_costs_provenance_and_the_reasons_of_those_without_scores(text):
    words = " ".join("".join(inner) for _, _, inner in Document(text).elements)
    for told in (
        "peml, seed 1: ok, average 75.0", "stop_losses: [[50, 0.9], [100, 0.7]]", "acc 0.7400", "tokens_per_second",
        "oom: CUDA out of memory. Lower --micro-batch.", "refused: needs two tasks", "molora, seed 0: missing",
        "protocol", "prompts", "lm_eval 0.4.13",
    ):  # fmt: skip
        assert told in words, told


def test_charts_are_inline_with_their_values_and_demo_words(text):
    document = Document(text)
    charts = document.all("svg", role="img")
    assert len(charts) == 9 and all(found["aria-label"] for found, _ in charts)
    titles = [told for _, told in document.all("title")]
    assert "peml: average 74.5 ± 0.7 (2 seeds), 400,000 trainable parameters" in titles
    assert sum("demo data, demo backbone" in told for _, told in document.all("text")) == 9


def test_titles_of_several_tables_are_told_apart():
    document = Document(page(several()))
    assert len(document.all("h2")) == 2 and any("scored on training rows" in told for _, told in document.all("h2"))


def test_names_and_messages_stay_text(hostile_text):
    document = Document(hostile_text)
    assert len(document.all("script")) == 1 and not document.all("img")
    handlers = [name for _, found, _ in document.elements for name in found if name.startswith("on")]
    assert not handlers
    words = [*(told for _, told in document.all("th")), *(told for _, told in document.all("a"))]
    assert any(f"m{HOSTILE}" in told for told in words)
    assert HOSTILE in "".join(told for _, told in document.all("pre"))
    assert HOSTILE not in hostile_text and "<img" not in hostile_text.replace("&lt;img", "")
    hostile_text.encode()


def test_an_empty_study_and_one_without_scores_are_pages_too():
    assert "0 records." in page(study_of([]))
    words = page(study_of([failed(cell())]))
    assert "CUDA out of memory" in words and "Omitted charts" in words and "<svg" not in words


def test_the_same_study_gives_the_same_page():
    records = [*row("lora", 70.0), *row("mtl_lora", 60.0)]
    assert page(study_of(records, steps=steps)) == page(study_of(records[::-1], steps=steps))


def test_markup_escapes_all_that_is_not_markup():
    made = el(
        "a", "<b>", Markup("<i>"), None, ["&", Markup("&amp;")], title="\"'>", hidden=True, id=None, data_value=1.5
    )
    assert made == ('<a title="&quot;&#x27;&gt;" hidden data-value="1.5">&lt;b&gt;<i>&amp;&amp;</a>')
    assert join("<", join("<")) == "&lt;&lt;" and len(TASKS) == 3
