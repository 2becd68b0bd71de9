"""The matrix of architectures: every type with every method, and ``docs/architectures.md`` made of what came out.

``python tests/architectures/matrix.py`` writes the page (``make matrix``); with names of types it tries these alone
and prints what came out. It ends with 1 when a cell failed.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import transformers
from tiny_types import TYPES, UNSUITED
from trying import METHODS, Tried, tried

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
_CLASS = re.compile(
    r"\b\w+(?:ForCausalLM|ForConditionalGeneration|LMHeadModel|MTModel|Attention)\b(?! )|\b[A-Z]\w+For\w+\b"
)


def main(names: Sequence[str]) -> int:
    """Try the named types, or all, and write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, list[Tried]] = {}
    for name in names or [*TYPES, *UNSUITED]:
        found[name] = list(tried(name, METHODS if name in TYPES else ("base",)))
        counts = {status: sum(one.status == status for one in found[name]) for status in ("ok", "refused", "unplanned")}
        print(f"{name:16}", *(f"{count} {status}" for status, count in counts.items() if count), flush=True)
        for one in found[name]:
            if one.status == "failed":
                print(f"  FAILED {one.method}: {one.reason}", flush=True)
    if not names:
        PAGE.write_text(page(found))
    return int(any(one.status == "failed" for several in found.values() for one in several))


def page(found: Mapping[str, Sequence[Tried]]) -> str:
    """The document."""
    reasons: dict[str, int] = {}
    rows = [[name, *(_entry(one, reasons) for one in found[name])] for name in TYPES]
    kinds = [[name, _attention(found[name]), _layout(found[name]), _experts(found[name])] for name in TYPES]
    refused = [[name, found[name][0].reason] for name in UNSUITED]
    return "\n".join(
        [
            _ABOUT.format(version=transformers.__version__, types=len(TYPES), methods=len(METHODS)),
            *_table(["type", *METHODS], rows),
            "",
            *(f"{number}. {reason}" for reason, number in reasons.items()),
            "",
            _KINDS,
            *_table(["type", "attention", "rows in training", "not adapted"], kinds),
            "",
            _REFUSED,
            *_table(["checkpoint", "why"], refused),
            "",
        ]
    )


def _entry(one: Tried, reasons: dict[str, int]) -> str:
    if one.status in ("ok", "failed"):
        return one.status
    reason = _CLASS.sub("the model", one.reason)
    return str(reasons.setdefault(reason[0].upper() + reason[1:], len(reasons) + 1))


def _notes(several: Iterable[Tried], name: str) -> list[str]:
    notes = [one.record.notes.get(name) for one in several if one.record is not None and one.status == "ok"]
    return [str(note) for note in notes if note]


def _attention(several: Sequence[Tried]) -> str:
    return next(iter(_notes(several, "attention")), "sdpa").partition(",")[0]


def _layout(several: Sequence[Tried]) -> str:
    lora = [one for one in several if one.method == "lora"]
    return re.sub(r"differ by \S+:", "differ:", next(iter(_notes(lora, "row_layout")), ""))


def _experts(several: Sequence[Tried]) -> str:
    return "experts" if _notes(several, "not_adapted") else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


_ABOUT = """# Architectures

Which backbones of transformers work with which methods. `make matrix` makes this page: of each type it writes a tiny random model, and each
method then trains two steps on two demo tasks, one scored by likelihoods and one by generation, as a worker runs it. Nothing is said about
scores; a cell fails when an exception or a guard ends it.

`ok`: trained, saved, read again, scored. A number: the cell is skipped with that reason, in the record and on the screen. Made with
transformers {version}: {types} types, {methods} methods. Other low-rank methods (`molora`, `poly`, `mhr`, `multilora`, `rslora`) attach
as `lora` and `moelora` do, `pfeiffer` as `houlsby`, `mpt`, `spot` and `attempt` as `prompt_tuning`, `prefixnas` as `prefix`.
"""
_KINDS = """## What differs by type

`--attention auto`, the default, takes torch's kernel (`sdpa`) where the backbone has it, and else `eager`; the record and the notes of a
table then say so. Rows of a step lie end to end where the backbone allows it, and are padded otherwise, with the reason in the record
([batching.md](batching.md)); the result is the same. Experts of mixture-of-experts layers see single tokens that a router chose, no rows: only
`full` trains them, and the record and the notes of a table name the methods that pass them by. `houlsby` and `hyperformer` stand behind the mixture as
a whole. GPT-2's `Conv1D` is a linear with its weight transposed, and is loaded as one; what is exported fits the stock model.
"""
_REFUSED = """## Refused at the plan

Checkpoints that transformers would load, with a head of random weights or with attention that they never had, and types whose rows depend on
each other. Their `config.json` tells, so no worker starts.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
