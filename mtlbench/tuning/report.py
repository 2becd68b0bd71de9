"""The result of a search, as a Markdown document and a chart."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import accumulate
from pathlib import Path

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Value
from mtlbench.files.sealed import overwrite
from mtlbench.results.study import study_of
from mtlbench.text import markdown_table, one_line, sentences, without_directories
from mtlbench.tuning.sampler import frozen
from mtlbench.tuning.search import Outcome
from mtlbench.tuning.space import Space, quiet_study, space_text
from mtlbench.tuning.trials import Trial
from mtlbench.tuning.tuning import Tuning


def documents(tuning: Tuning, outcome: Outcome, *, search: Path) -> dict[str, str]:
    """File name to content: ``tuning-<method>.md`` and, once a trial is complete, ``tuning-<method>.svg``."""
    stem = f"tuning-{tuning.template.method}"
    title = f"Tuning of {tuning.template.variant}: {study_of([], expected=[tuning.template]).title}"
    drawn = history_svg(outcome.trials, title=title)
    blocks = [f"# {one_line(title)}", *_effort(tuning, outcome), *_best(tuning, outcome, search)]
    blocks += ["## History", *([f"![Score of each trial]({stem}.svg)"] if drawn else []), _history(outcome.trials)]
    blocks += ["## Importance of the settings", _importance(tuning, outcome)]
    return {f"{stem}.md": "\n\n".join(blocks) + "\n", **({f"{stem}.svg": drawn} if drawn else {})}


def write_documents(tuning: Tuning, outcome: Outcome, target: Path, *, search: Path) -> list[Path]:
    """Write :func:`documents` to the folder ``target``, and give their paths."""
    target.mkdir(exist_ok=True)
    contents = {target / name: content for name, content in documents(tuning, outcome, search=search).items()}
    for path, content in contents.items():
        overwrite(path, content.encode(), durable=False)
    return list(contents)


def settings_text(settings: Mapping[str, Value]) -> str:
    """``learning_rate=0.00105, prefix_length=12``."""
    return ", ".join(f"{name}={'none' if value is None else value}" for name, value in sorted(settings.items()))


def trial_line(trial: Trial, best: Trial | None) -> str:
    """One line about a settled trial for a terminal."""
    score = f"average {trial.scores[-1]:.2f}" if trial.scores else "no score"
    text = f"trial {trial.number}: {trial.state}, {score}, {settings_text(trial.settings)}"
    if trial.state == "failed":
        return sentences(text, _reason(trial))
    return f"{text}; best so far {best.score:.2f} (trial {best.number})" if best and best.score is not None else text


def _effort(tuning: Tuning, outcome: Outcome) -> Iterator[str]:
    protocol = tuning.template.protocol
    counts = [f"{n} {state}" for state in ("complete", "pruned", "failed", "running") if (n := _count(outcome, state))]
    yield (
        f"Effort `{tuning.effort}`, seed {tuning.options.seed}: {len(outcome.trials)} of {tuning.trials} trials "
        f"({', '.join(counts)}), {tuning.at_once} suggested at once, {_amount(protocol)} each at most, "
        f"{sum(trial.seconds for trial in outcome.trials):.0f} s of cells."
    )
    yield (
        f"Scores are averages over the tasks, in percent, on {protocol.eval_from_train:.0%} of each task's training "
        "examples, which the trials do not train on. No trial reads the evaluation split. These scores are not "
        "comparable with those of `mtlbench run`: the best of several is higher than it would be on new examples."
    )
    if len(tuning.protocols) > 1:
        shares = ", ".join(map(_amount, tuning.protocols))
        yield f"Pruning `{tuning.options.pruning}`: each trial runs {shares}, one after another, until it is pruned."
    rows = [[f"`{name}`", f"`{space_text(domain)}`"] for name, domain in tuning.space.fields.items()]
    yield _grid(["searched", "values"], rows)


def _best(tuning: Tuning, outcome: Outcome, search: Path) -> Iterator[str]:
    best = outcome.best
    yield "## Best settings"
    if best is None:
        yield "No trial is complete."
        return
    yield f"Trial {best.number} with {best.score:.2f}: {_code(settings_text(best.settings))}. To train with them:"
    yield f"```\n{without_directories(tuning.run_command(best.settings, search=search))}\n```"
    for note in best.records[-1].notes.values():
        if isinstance(note, Mapping) and "architecture" in note:
            yield f"Architecture found in that trial: {_code(json.dumps(note['architecture']))}"


def _history(trials: Sequence[Trial]) -> str:
    rows, best = [], ""
    top: float | None = None
    for trial in trials:
        if trial.score is not None and (top is None or trial.score > top):
            top, best = trial.score, f"{trial.score:.2f}"
        scores = " → ".join(f"{score:.2f}" for score in trial.scores) or "–"
        state = trial.state if trial.state != "failed" else f"failed: {_plain(_reason(trial))}"
        rows.append(
            [str(trial.number), _code(settings_text(trial.settings)), state, scores, best, f"{trial.seconds:.1f} s"]
        )
    return _grid(["trial", "settings", "outcome", "score", "best so far", "time"], rows)


def _importance(tuning: Tuning, outcome: Outcome) -> str:
    shares = importances(tuning.space, outcome.trials)
    if shares is None:
        return f"Not available with fewer than {FEWEST} complete trials."
    return "PED-ANOVA over the complete trials:\n\n" + _grid(
        ["setting", "importance"], [[f"`{name}`", f"{100 * share:.0f}%"] for name, share in shares.items()]
    )


def _amount(protocol: Protocol) -> str:
    number, unit = (protocol.epochs, "epoch") if protocol.steps is None else (protocol.steps, "step")
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _reason(trial: Trial) -> str:
    why = trial.records[-1].failure if trial.records else None
    return one_line(f"{why.kind}: {why.message}" if why else "no scores")


def _count(outcome: Outcome, state: str) -> int:
    return sum(trial.state == state for trial in outcome.trials)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown_table(header, rows))


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39)).replace('|', '/')}`"


def _plain(text: str) -> str:
    return re.sub(r"[\\|<*`_~$&]", r"\\\g<0>", text)


FEWEST = 10
"""Complete trials below which importances are meaningless."""


def importances(space: Space, trials: Sequence[Trial]) -> Mapping[str, float] | None:
    """Setting to its share of the importance, largest first; ``None`` with fewer than ten complete trials.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255): how far the settings of the best trials differ from all.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if len(complete) < FEWEST:
        return None
    import optuna

    study = quiet_study(optuna.samplers.RandomSampler(seed=0))
    study.add_trials([frozen(space, trial) for trial in complete])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


_INK, _LINE, _DOT = "#444444", "#0072b2", "#d55e00"


def history_svg(trials: Sequence[Trial], *, title: str) -> str | None:
    """One dot for each complete trial and a line of the best score so far; ``None`` without a complete trial."""
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    if not scored:
        return None
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers, scores = zip(*scored, strict=True)
    last = max(trial.number for trial in trials)
    best = list(accumulate(scores, max))
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.plot([*numbers, last], [*best, best[-1]], drawstyle="steps-post", color=_LINE, label="best so far", gid="best")
    axes.plot(numbers, scores, "o", markersize=5, color=_DOT, label="one trial", gid="trials")
    axes.set_xlabel("trial", color=_INK)
    axes.set_ylabel("average on the tuning rows (%)", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False)
    drawn = StringIO()
    # the same trials give the same bytes: no date, and no ids that are drawn at random
    with rc_context({"svg.hashsalt": "mtlbench", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Title": title})
    return drawn.getvalue()
