"""The charts as files: which there are, that they are the same each time, and that their labels can be read."""

from __future__ import annotations

import itertools
import subprocess
import sys
from xml.etree import ElementTree as ET

import matplotlib
import pytest
from drawn_studies import TASKS, hostile, row, several, whole
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend
from matplotlib.text import Text
from record_builder import cell, failed

from mtlbench.plugins import load_report
from mtlbench.results.study import study_of
from mtlbench_reports.charts.chart import Chart
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.style import COLOURS, drawing, looks

ALL = (
    "critical-difference", "differences", "losses", "rank-cost", "score-memory", "score-time", "score-trainable", "search",
    "sensitivity",
)  # fmt: skip


def rendered(study) -> dict[str, bytes]:
    documents = load_report("charts").render(study)
    return {name: text.encode() if isinstance(text, str) else text for name, text in documents.items()}


@pytest.fixture(scope="module")
def documents() -> dict[str, bytes]:
    return rendered(whole())


def test_every_chart_comes_as_svg_pdf_and_png_with_an_index(documents):
    assert sorted(documents) == sorted(["charts.txt", *(f"chart-{n}.{e}" for n in ALL for e in ("svg", "pdf", "png"))])
    for name, content in documents.items():
        if name.endswith(".svg"):
            assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        elif name != "charts.txt":
            assert content.startswith(b"%PDF-" if name.endswith(".pdf") else b"\x89PNG")
    index = documents["charts.txt"].decode()
    assert all(f"- chart-{name}: " in index for name in ALL) and "omitted" not in index
    assert "molora (1 missing)" in index and "mtl_lora (1 failed)" in index and "moelora (1 skipped)" in index


def test_the_same_study_gives_the_same_bytes_whatever_the_users_own_settings(documents):
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "svg.fonttype": "none", "figure.dpi": 30, "axes.facecolor": "pink"}
    ):
        second = rendered(whole())
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert documents == second


def test_several_tables_have_files_of_their_own():
    documents = rendered(several())
    assert {name.split("-")[1] for name in documents if name.startswith("chart-")} == {"1", "2"}
    index = documents["charts.txt"].decode()
    assert "Table 1: " in index and "scored on training rows" in index


def test_what_cannot_be_drawn_is_left_out_with_a_reason():
    index = rendered(study_of([failed(cell())]))["charts.txt"].decode().splitlines()
    left = [line for line in index if line.startswith("- omitted: ")]
    assert len(left) == len(ALL) and not [line for line in index if line.startswith("- chart-")]
    assert "- omitted: Loss over training steps: no row has a step log or an early-stopping loss." in left
    assert "nothing to draw" in rendered(study_of([]))["charts.txt"].decode()


@pytest.mark.parametrize("study", [whole, several, hostile], ids=lambda made: made.__name__)
def test_titles_own_up_to_demo_data_and_no_label_is_cut_or_hidden(study):
    study = study()
    with drawing(), drawings(study, lambda _, chart: chart, copies=1) as found:
        for drawn in found():
            charts = [chart for chart in drawn.charts if isinstance(chart, Chart)]
            assert charts
            for chart in charts:
                check_labels(chart, drawn.table.title)


def check_labels(chart: Chart, table_title: str) -> None:
    figure = chart.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    words = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert words.startswith(chart.title) or "…" in words
    assert table_title in words or "…" in words
    assert "demo data" in words
    ticks = [ticks_of(axis) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    unseen = {id(text) for _, hidden in ticks for text in hidden}
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1
        assert inside or id(text) in unseen, (chart.name, text.get_text(), box)
    frames = [axes.get_window_extent(renderer) for axes in figure.axes]
    for legend in figure.findobj(Legend):
        assert not any(legend.get_window_extent(renderer).overlaps(frame) for frame in frames), chart.name
    for shown, _ in ticks:
        boxes = [text.get_window_extent(renderer).padded(-1) for text in shown if text.get_rotation() == 0]
        for one, other in itertools.pairwise(boxes):
            assert not one.overlaps(other), (chart.name, shown)


def ticks_of(axis: Axis) -> tuple[list[Text], list[Text]]:
    """The labels of an axis that are drawn, and those that are not."""
    low, high = sorted(axis.get_view_interval())
    texts: tuple[list[Text], list[Text]] = ([], [])
    for tick in axis.get_major_ticks():
        for label in (tick.label1, tick.label2):
            drawn = low <= tick.get_loc() <= high and label.get_visible() and label.get_text()
            texts[0 if drawn else 1].append(label)
    return texts


def test_a_variant_keeps_its_look_in_every_table_and_looks_differ_in_grey():
    names = [f"method{n:02}" for n in range(77)]
    given = looks(names[::-1])
    assert given == looks(names)
    assert len({(look.colour, look.marker) for look in given.values()}) == 77
    neighbours = [given[name] for name in names[: len(COLOURS)]]
    assert len({look.marker for look in neighbours}) == len(neighbours)


def test_letters_that_the_font_lacks_are_named():
    study = study_of(row("lora", 70.0, tasks=("中/文", "a/b")))
    assert "boxes for them: 中文" in rendered(study)["charts.txt"].decode()


def test_asking_for_the_reports_loads_nothing_heavy_and_drawing_loads_no_torch():
    code = (
        "import sys\n"
        "from mtlbench.plugins import load_report\n"
        "reports = [load_report('charts'), load_report('html')]\n"
        "heavy = {'matplotlib', 'numpy', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from drawn_studies import row\n"
        "from mtlbench.results.study import study_of\n"
        "study = study_of(row('vera', 60.0))\n"
        "assert len(reports[0].render(study)) == 1 + 3 * 3 and reports[1].render(study)\n"
        "heavy = {'matplotlib.pyplot', 'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr


def test_failed_cells_and_odd_notes_break_no_chart():
    notes = [
        {"prefix_nas": 3, "stop_losses": "abc"},
        {"prefix_nas": {"by_task": {"a": None}}, "stop_losses": [[1], ["x", 2], [3, float("nan")]]},
        {
            "prefix_nas": {
                "trajectory": [{"step": None, "keep": 1, "entropy": "x", "mixtures": [{}]}],
                "architecture": [],
            }
        },
        {"prefix_nas": {"trajectory": [], "architecture": [["a"]]}},
    ]
    records = [record for n, note in enumerate(notes) for record in row(f"m{n}", 60.0 + n, notes=note)]
    documents = rendered(study_of([*records, failed(cell("bad", tasks=TASKS))]))
    index = documents["charts.txt"].decode()
    assert "chart-differences: " in index
    assert "omitted: Architecture search: no record holds the trajectory of a search." in index
