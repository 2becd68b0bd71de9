"""The LaTeX report: sets what the study says, compiles with booktabs alone, and takes names and messages as text."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from drawn_studies import hostile, row, several, whole
from record_builder import PROTOCOL, cell, done, failed, skipped

from mtlbench.plugins import load_report
from mtlbench.results.study import study_of
from mtlbench_reports.latex_text import escaped

ENGINE = shutil.which("pdflatex")
PRINTABLE = "".join(map(chr, range(32, 127)))


def rendered(study) -> dict[str, str]:
    return load_report("latex").render(study)


def tables(study) -> str:
    return rendered(study)["tables.tex"]


def check_structure(text: str) -> None:
    """What an engine would stop at: braces, environments, columns, and characters with a meaning of their own."""
    assert text.isascii()
    bare = re.sub(r"\\[\\{}$&#%_~]", "", re.sub(r"(?m)^%.*$", "", text))
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"[#\"]", bare)
    for opened, closed in re.findall(r"\\begin\{(\w+)\}|\\end\{(\w+)\}", text):
        assert (opened or closed) in ("table", "tabular")
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.S):
        wide = len(re.sub(r"p\{[^}]*\}", "l", columns))
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines and all(len(re.findall(r"(?<!\\)&", line)) == wide - 1 for line in lines)


def compiled(folder, documents) -> str:
    for name, text in documents.items():
        (folder / name).write_text(text)
    words = [ENGINE, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    found = subprocess.run(words, cwd=folder, capture_output=True, timeout=100)
    told = found.stdout.decode(errors="replace")
    assert found.returncode == 0, told[-2000:]
    return told


STUDIES = {
    "whole": whole,
    "several": several,
    "hostile": hostile,
    "empty": lambda: study_of([]),
    "failed": lambda: study_of([failed(cell(), message="100% & _all_ #1 \\input{x} ^^M")]),
    "long": lambda: study_of([r for n in range(60) for r in row("lora", 50.0 + n / 10, settings={"rank": n + 1})]),
    "wide": lambda: study_of(
        [r for m in ("lora", "mtl_lora") for r in row(m, 60.0, tasks=tuple(f"s/task_{n}" for n in range(23)))]
    ),
    "letters": lambda: study_of(
        [
            done(cell(PRINTABLE, tasks=("中/文", "é/ñ--x")), 1.0, 2.0),
            done(cell("[b]*", tasks=("中/文", "é/ñ--x")), 3.0, 4.0),
        ]
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_well_formed(name):
    check_structure(tables(STUDIES[name]()))


@pytest.mark.skipif(ENGINE is None, reason="there is no pdflatex on PATH")
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_compiles_with_booktabs_alone(tmp_path, name):
    documents = rendered(STUDIES[name]())
    assert set(re.findall(r"\\usepackage(?:\[.*?\])?\{(.*?)\}", documents["report.tex"])) == {"booktabs", "geometry"}
    assert "usepackage" not in documents["tables.tex"]
    told = compiled(tmp_path, documents)
    assert "Float too large" not in told and "Missing character" not in told


def test_the_best_is_bold_and_what_is_as_good_is_underlined():
    records = [*row("lora", 70.0, seeds=(0, 1, 2)), *row("lora_st", 60.0, seeds=(0, 1, 2))]
    records[0] = replace(records[0], scores={t: replace(s, score=s.score - 9) for t, s in records[0].scores.items()})
    text = tables(study_of(records))
    assert r"\textbf{68.0}{\scriptsize$\pm$6.1}" in text
    assert r"\underline{61.0}{\scriptsize$\pm$1.0}" in text
    assert r"\label{tab:scores}" in text and "underlined: not significantly worse than the best" in text


def test_failed_and_skipped_cells_are_told_with_their_reason():
    text = tables(study_of([*row("lora", 70.0), failed(cell("peml", tasks=("glue/rte", "glue/sst2", "glue/qnli")))]))
    (letter,) = set(re.findall(r"\{\}peml\$\^\{\\mathrm\{(\w)\}\}\$ & -- & --", text))
    assert rf"$^{{\mathrm{{{letter}}}}}$peml: (0 of 1 seeds): seed 0 failed: oom: CUDA out of memory." in text
    assert "needs two tasks" in tables(study_of([skipped(cell())]))


def test_a_single_seed_says_so():
    assert "One seed: no spread." in tables(study_of(row("lora", 70.0, seeds=(0,))))


def test_different_protocols_never_share_a_table_and_what_differs_is_told():
    other = replace(PROTOCOL, steps=50)
    text = tables(
        study_of([*row("lora", 70.0), *row("peml", 60.0, protocol=other), *row("base", 50.0, protocol=other)])
    )
    floats = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.S)
    assert not [one for one in floats if "lora" in one and "peml" in one]
    assert "% The tables have different protocols (steps): compare rows inside a table only." in text
    assert all("steps=" in one for one in floats if "continued" not in one)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mtl_lora[rank=8]", r"mtl\_lora[rank=8]"),
        (
            "50% of {x} & #1 $5 ~ ^ \\",
            r"50\% of \{x\} \& \#1 \$5 \textasciitilde{} \textasciicircum{} \textbackslash{}",
        ),
        ("a--b", "a-{}-b"),
        ("é…中", r"\'{e}\ldots{}[U+4E2D]"),
        ("\x1b[31m\nred", "[31m red"),
    ],
)
def test_text_is_set_as_it_is(text, told):
    assert escaped(text) == told
