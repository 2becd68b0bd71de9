"""All checks of methods in order, and the functions that run them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mtlbench.api.method import Method
from mtlbench.api.task import TaskSuite
from mtlbench.conformance import backward, declared, forward, invariants
from mtlbench.conformance.findings import Finding, NotApplicable, PromiseBroken
from mtlbench.conformance.fixture import Check, Fixture, scrambled
from mtlbench.conformance.toys import tiny_causal, tiny_seq2seq
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.plan import resolve_tasks
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.plugins import offers, raised

BACKBONES: Mapping[str, Callable[[], nn.Module]] = {"tiny Llama": tiny_causal, "tiny T5": tiny_seq2seq}

CHECKS: tuple[Check, ...] = (
    Check(
        "attach",
        "the method attaches, or refuse(setup) returns the reason",
        "",
        invariants.attach,
    ),
    Check(
        "identity_at_start",
        "before the first step the logits are the backbone's",
        "Initialise one factor of what you add with zeros, or set identity_at_start = False if that is intended.",
        forward.identity,
    ),
    Check(
        "padding",
        "a row gives the same logits alone and in a batch padded on either side",
        "Compute every row and position independently: no statistics over the batch or over padded positions, nothing "
        "that depends on the padded length of a batch.",
        forward.padding,
    ),
    Check(
        "packing",
        "rows laid end to end without padding have the losses of padded rows",
        "A layer's input is [chunks, width, hidden] with all tokens of a chunk of one task: compute every token by "
        "itself and take tasks from setup.routing.ids(chunks). Set reads_rows = True where layers need whole rows.",
        forward.packing,
    ),
    Check(
        "mixed_tasks",
        "a mixed batch gives the same logits as one batch per task",
        "Take the task of every row from setup.routing.ids(rows), in the order of the rows, index with it, and compute "
        "no statistics over the batch.",
        forward.mixed_tasks,
    ),
    Check(
        "routing",
        "other task ids change a task-routed method, and only such a method",
        "Set task_routed to what the layers do: True if they use setup.routing, False if they do not.",
        forward.routing,
    ),
    Check(
        "beams",
        "beam search gives tokens the same scores as a plain forward of each row",
        "Call setup.routing.ids(rows) with the number of rows of the input tensor, since beam search repeats rows in "
        "place, and do not depend on the number of tokens in a call, since generation with a cache passes one at a "
        "time.",
        forward.beams,
    ),
    Check(
        "gradients",
        "every trainable parameter gets finite gradients in training",
        "Use every parameter that requires gradients in the forward or the loss, or do not let it require them; keep "
        "divisions, roots and logarithms away from zero.",
        backward.gradients,
    ),
    Check(
        "absent_tasks",
        "a batch gives gradients to its tasks' parameters and exactly none to other tasks'",
        "Index tables by the task ids of setup.routing.ids(rows), and do not mix anything over all tasks.",
        backward.absent_tasks,
    ),
    Check(
        "checkpointing",
        "gradient checkpointing gives the same gradients",
        "Draw training noise from torch's global random state, which is restored for the recomputation, and change no "
        "state in forward.",
        backward.checkpoint,
    ),
    Check(
        "keys",
        "attached, trained and saved parameters are the same set, and all of them are updated",
        "Pass every trainable parameter to param_groups and change requires_grad only in attach; a module that loses "
        "parameters in training needs shrink_to(names).",
        invariants.keys,
    ),
    Check(
        "reload",
        "the saved adapter in a new model gives the same logits",
        "Only parameters that require gradients are saved: store everything that the output depends on in them, or "
        "make it the same in every attach.",
        invariants.reload,
    ),
    Check(
        "same_seed",
        "the same seed gives the same numbers independent of the global random state",
        "Draw initial values from a torch.Generator seeded by setup.seed, never from a global random state.",
        invariants.same_seed,
    ),
    Check(
        "resume",
        "training that is resumed from a checkpoint gives bitwise the same result as uninterrupted training",
        "Store state between steps in parameters or buffers, pass other state to trainer.keep, draw noise from torch's "
        "global random state, or set resumable = False: such cells restart from the beginning.",
        invariants.resume,
    ),
    Check(
        "finish",
        "merging or collapsing keeps the logits",
        "Merge in float32 with the same scale as in forward, and without dropout.",
        invariants.finish,
    ),
    Check(
        "backbone_untouched",
        "attach, training and finish do not change a byte of the backbone",
        "Frozen weights are shared between cells: train copies, and merge into a new tensor.",
        invariants.backbone,
    ),
    Check(
        "settings",
        "what looks like a setting in the class is one",
        "A setting is a field of the dataclass, and a field has an annotation.",
        declared.settings,
    ),
    Check(
        "imports",
        "importing the method loads no library that takes seconds",
        "Planning imports every method that is named: import torch and the like inside the functions that use them.",
        declared.imports,
    ),
)


def method_findings(
    method: Method,
    *,
    backbones: Sequence[str] = tuple(BACKBONES),
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> tuple[Finding, ...]:
    """All findings in the order of :data:`CHECKS` for each of ``backbones``; ``on_finding`` is called with each.

    If the method does not attach, or refuses, that is the only finding on a backbone; :func:`unexamined` says whether
    any promise was checked. Global random states are restored.
    """
    found: list[Finding] = []
    for finding in _findings(method, backbones):
        on_finding(finding)
        found.append(finding)
    return tuple(found)


def unexamined(method: Method, findings: Sequence[Finding]) -> str | None:
    """Why ``findings`` say nothing about ``method``, and what to do; ``None`` where a promise was examined."""
    if any(finding.outcome != "skipped" for finding in findings):
        return None
    reasons = "; ".join(dict.fromkeys(f.message.rstrip(".") for f in findings))
    known = ",".join(f"{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in _example(method).items())
    advice = (
        f"Check it with settings that fit, such as {method.name}[{known}]."
        if known
        else "Check it with settings that fit projections 32 to 64 wide, and state them as Method.example_settings."
    )
    return f"no promise was examined: {reasons}. {advice}"


def _example(method: Method) -> Mapping[str, Any]:
    """The example settings, unless they are what was checked."""
    own, known = method.settings(), method.example_settings
    return {} if known.items() <= own.items() else known


def _findings(method: Method, backbones: Sequence[str]) -> Iterator[Finding]:
    for name in backbones:
        with tempfile.TemporaryDirectory() as folder:
            fixture = Fixture(method=method, build=BACKBONES[name], folder=Path(folder))
            for check in CHECKS:
                finding = _find(check, fixture, name)
                yield finding
                if check is CHECKS[0] and finding.outcome != "ok":
                    break


def _find(check: Check, fixture: Fixture, backbone: str) -> Finding:
    try:
        with scrambled(0):
            check.run(fixture)
    except NotApplicable as reason:
        return Finding(check.name, backbone, "skipped", str(reason))
    except PromiseBroken as seen:
        return Finding(check.name, backbone, "failed", f"{seen}. {check.advice}".rstrip())
    except (Exception, SystemExit) as error:
        expected = f"Correct what raised it; this check asks that {check.promise}."
        return Finding(check.name, backbone, "failed", f"raised {raised(error)}. {expected}")
    return Finding(check.name, backbone, "ok", check.promise)


def methods_named(names: str) -> dict[str, Method]:
    """``"peml,lora[rank=4]"`` to the two methods, by name with settings.

    Raises:
        RequestError: for an unknown method or setting, or one the method refuses.
    """
    methods: dict[str, Method] = {}
    for name, settings in split_methods(names):
        _must_be_known(name)
        inner = ",".join(f"{setting}={value}" for setting, value in settings.items())
        methods[f"{name}[{inner}]" if inner else name] = build(name, read_settings(name, settings))
    return methods


def suites_named(names: str) -> list[TaskSuite]:
    """``"glue,superglue/rte"`` to the suites, each with the named tasks only; empty if a name is not that of a suite.

    Raises:
        RequestError: a suite has no such task.
    """
    suites, methods = offers("tasks"), offers("methods")
    heads = [item.strip().partition("/")[0] for item in names.split(",")]
    if not all(head in suites and head not in methods for head in heads):
        return []
    tasks, by_name = resolve_tasks(names)
    return [
        replace(suite, tasks=tuple(task for full, task in tasks.items() if full.partition("/")[0] == name))
        for name, suite in by_name.items()
    ]


def _must_be_known(name: str) -> None:
    suites, methods = offers("tasks"), offers("methods")
    for member in name.split("+"):
        if member in methods:
            continue
        if member in suites:
            raise RequestError(f"{member!r} is a suite: check suites and methods in separate commands.")
        if any(member in offers(group) for group in ("reports", "observers", "executors")):
            raise RequestError(
                f"{member!r} is no method: check methods, and reports, observers and executors, in separate commands."
            )
        raise RequestError(f"Unknown method or suite {member!r}. {did_you_mean(member, {*methods, *suites})}")
