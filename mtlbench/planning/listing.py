"""What is installed, as lines for people: protocols, the tasks of a suite, backbones, the tuners of peft."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mtlbench.api.task import Task
from mtlbench.errors import MtlbenchError
from mtlbench.planning.protocols import about, basis_of, choose_protocol, fields_of, names
from mtlbench.plugins import load_packaged, load_suite


def protocol_lines(*, verbose: bool = False) -> Iterator[str]:
    """Name, hash of the fields and meaning of each protocol that comes with mtlbench; if ``verbose``, a line more for
    each field it sets, with where the value comes from."""
    width = max(map(len, names()))
    for name in names():
        yield f"{name:<{width}}  {choose_protocol({'name': name}).for_tasks((), data='').hash()}  {about(name)}"
        basis = basis_of(name) if verbose else {}
        for field, value in fields_of(name).items() if verbose else ():
            yield f"{'':<{width}}    {field} = {value}" + (f"  ({basis[field]})" if field in basis else "")


def suite_lines(name: str) -> Iterator[str]:
    """Two lines a task of an installed suite: data set, splits and metrics; source, licence and paper tables.

    A suite that cannot be loaded gives one line that says why.
    """
    try:
        suite = load_suite(name)
    except MtlbenchError as error:
        yield str(error)
        return
    width = max((len(task.name) for task in suite.tasks), default=0)
    for task in suite.tasks:
        yield f"{name}/{task.name:<{width}}  {_facts(task)}"
        licence, tables = task.licence or "not stated", ", ".join(task.tables) or "none"
        yield f"{'':<{len(name) + width + 3}}{task.source or 'no source'}; licence: {licence}; tables: {tables}"


def backbone_line(name: str) -> str:
    """What a packaged backbone is, its licence, and how to install what it needs; or why it cannot be loaded."""
    try:
        backbone = load_packaged(name)
    except MtlbenchError as error:
        return str(error)
    missing = f"not installed: {backbone.install}" if backbone.path is None else ""
    licence = f"licence: {backbone.licence or 'not stated'}"
    return "; ".join(filter(None, (backbone.about, licence, missing)))


def peft_line() -> str:
    """One line for the list of methods: version and tuners of the installed peft."""
    version, names = metadata.version("peft"), peft_types()
    if not names:
        return f"peft {version} is installed, but utils/peft_types.py does not tell which tuners it has"
    return f"peft {version} offers: {', '.join(names)} (write peft[type=NAME]; what cannot work is refused and why)"


def peft_types() -> tuple[str, ...]:
    """Names in peft's ``PeftType``, sorted; empty when its source has another form.

    Read from its files: importing peft takes seconds and loads torch.
    """
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        return ()
    source = Path(spec.origin).parent / "utils" / "peft_types.py"
    if not source.is_file():
        return ()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == "PeftType":
            values = [item.value for item in node.body if isinstance(item, ast.Assign)]
            return tuple(sorted(str(v.value) for v in values if isinstance(v, ast.Constant)))
    return ()


def _facts(task: Task) -> str:
    data = f"{task.dataset} {task.config or ''}".rstrip()
    examples = f" from {task.shots_split}" if task.shots_split else ""
    shots = f", {task.shots}-shot{examples}" if task.shots else ""
    splits = f"{task.train_split} -> {task.eval_split}"
    return f"{data}, {splits}{shots}, {' and '.join(task.metrics)}"
