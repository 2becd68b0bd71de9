"""Merging: one LoRA per task, trained apart, and then one update for all tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, hookimpl, nn
from mtlbench_methods import merge_rules as rules
from mtlbench_methods.lora_st import LoraSt, Stage
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRUNED = tuple(name for name, rule in rules.RULES.items() if rule.prune)
HOWS = ("average", *rules.RULES, "svd", *rules.ALIGNED)
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Those of gstoica27/KnOTS@01a940c:eval_scripts/nli_pertask_linearsearch.py, and above 1 four of ours for means."""
DENSITIES = (0.2, 0.1, 0.3, 0.5, 0.7, 0.9)
"""The first is that of the TIES paper, at which the scale is chosen."""
MERGE_ROWS = ",".join(f"merge[how={how}]" for how in HOWS)


@dataclass(frozen=True, kw_only=True)
class Merge(LoraSt):
    """``lora_st``, whose updates ``D_t = s B_t A_t`` are then merged into one for all tasks: ``scale * M(D_1 .. D_T)``.

    ``M`` for each ``how``: ``average`` (the mean, with a scale of 1), ``task_arithmetic`` (the sum; Ilharco et al.
    2023), ``ties`` (of each update the largest elements; the mean of the values with the sign of their sum; Yadav et
    al. 2023), ``dare`` (a random part of each, divided by its share, summed; Yu et al. 2024), ``dare_ties``,
    ``magnitude`` (the largest elements of each, summed), ``svd`` (the sum at the rank of one update), ``knots`` and
    ``core_space`` (the rule ``within`` in a basis that the updates share; see :mod:`mtlbench_methods.merge_rules`).

    What is saved, scored and exported is one LoRA per linear of the rank of all updates together. ``average``,
    ``task_arithmetic``, ``svd``, ``knots`` and ``core_space`` are exact at that rank. The others have matrices of full
    rank, of which the best approximation is kept, as peft's ``ties_svd`` and its like do at the rank of one update;
    ``kept`` in the record is the share of their squared norm. Elements are pruned in each linear, as in peft, where the
    papers rank those of the whole model.

    A scale or a density that is not given is chosen on the validation split of the training examples, which also
    stopped the updates' training early: first the scale at a density of 0.2, then the density at that scale, as the
    official code of KnOTS does. The record lists what was tried.

    Its training is that of ``lora_st`` with the same settings, so cells of one run folder share it.
    """

    name: ClassVar[str] = "merge"
    source: ClassVar[str] = (
        "Ilharco et al. 2023, arXiv:2212.04089; Yadav et al. 2023, arXiv:2306.01708; Yu et al. 2024, arXiv:2311.03099; "
        "huggingface/peft 0.21.2: peft.utils.merge_utils; gstoica27/KnOTS@01a940c:task_merger.py; "
        "apanariello4/core-space-merging@e66f357:task_merger.py"
    )
    resumable: ClassVar[bool] = True
    task_routed: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mtl/merge": {"methods": f"base,lora,lora_st,mtl_lora,{MERGE_ROWS}", "tasks": "glue", "model": "demo"},
    }

    how: str = "task_arithmetic"
    """``average``, ``task_arithmetic``, ``ties``, ``dare``, ``dare_ties``, ``magnitude``, ``svd``, ``knots`` or
    ``core_space``."""
    scale: float | None = None
    """Of the merged update; ``None`` chooses it on the validation split (1 for ``average``)."""
    density: float | None = None
    """Share of the elements that pruning keeps; ``None`` chooses it on the validation split."""
    within: str | None = None
    """The rule in the basis of ``knots`` and ``core_space``; ``None`` is ``ties``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "how", holds=self.how in HOWS, allowed=f"one of {', '.join(HOWS)}")
        aligned = self.how in rules.ALIGNED
        only = f"left out for how={self.how}"
        check(self, "within", holds=self.within is None or aligned, allowed=only)
        check(self, "within", holds=self.within in {None, *rules.RULES}, allowed=f"one of {', '.join(rules.RULES)}")
        check(self, "scale", holds=self.scale is None or self.how != "average", allowed=f"{only}, whose scale is 1")
        scale = 1.0 if self.scale is None else self.scale
        check(self, "scale", holds=0 < scale < math.inf, allowed="a number above 0")
        check(self, "density", holds=self.density is None or self._prunes, allowed=f"{only}, which prunes nothing")
        check(self, "density", holds=0 < (1 if self.density is None else self.density) <= 1, allowed="in (0, 1]")

    @property
    def _rule(self) -> str:
        """The rule that merges elements, or ``how`` where there is none."""
        return (self.within or "ties") if self.how in rules.ALIGNED else self.how

    @property
    def _prunes(self) -> bool:
        return self._rule in PRUNED

    @property
    def searches(self) -> bool:
        """Whether held-out rows choose a scale or a density."""
        return (self.scale is None and self.how != "average") or (self.density is None and self._prunes)

    @property
    def built_on(self) -> Method:
        return LoraSt(**{f.name: getattr(self, f.name) for f in dataclasses.fields(LoraSt)})

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        super().attach(model, setup)
        stage = nn.get_state(model, Stage)
        nn.attach_state(model, MergeReport(seed=setup.seed))
        of = partial(factors, stage=stage, scale=self.alpha / (self.rank**0.5 if self.rslora else self.rank))
        for _, layer in _layers(model):
            layer.factors_of = of

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        if not trainer.inherit():
            super().fit(model, trainer)
        import torch

        with torch.no_grad():
            self._choose(model, trainer)

    def _choose(self, model: torch.nn.Module, trainer: Trainer) -> None:
        report = nn.get_state(model, MergeReport)
        tasks = nn.get_state(model, Stage).tasks
        scales = [1.0] if self.how == "average" else [self.scale] if self.scale is not None else list(SCALES)
        given = [1.0] if not self._prunes else [self.density] if self.density is not None else list(DENSITIES)
        updates = {name: _updates(layer, tasks) for name, layer in _layers(model)}
        best: tuple[float, float, float, Merged] | None = None
        for density in given:
            merged = self._merged(updates, density=density, seed=report.seed)
            for scale in scales if best is None else [best[2]]:
                _put(model, merged, tasks=tasks, scale=scale)
                score = trainer.validation_score() if self.searches else 0.0
                score = score if math.isfinite(score) else math.inf
                report.tried.append((scale, density, score))
                if best is None or score < best[0]:
                    best = (score, density, scale, merged)
        assert best is not None
        _, density, scale, merged = best
        _put(model, merged, tasks=tasks, scale=scale)
        report.how, report.scale, report.kept = self.how, scale, merged.kept
        report.density = density if self._prunes else None

    def _merged(self, updates: Mapping[str, Sequence[rules.LowRank]], *, density: float, seed: int) -> Merged:
        """Every linear's updates merged, with a scale of 1."""
        layers: dict[str, rules.LowRank] = {}
        kept = []
        for name, of_tasks in updates.items():
            rule, draw = rules.RULES.get(self._rule), nn.seeded_generator(seed, f"merge/{name}")
            if self.how == "average":
                layers[name] = rules.average(of_tasks)
            elif self.how == "task_arithmetic":
                layers[name] = rules.total(of_tasks)
            elif self.how == "svd":
                layers[name] = rules.svd(of_tasks, rank=self.rank)
            else:
                assert rule is not None
                if self.how in rules.ALIGNED:
                    layers[name] = rules.ALIGNED[self.how](of_tasks, rule, density=density, draw=draw)
                else:
                    rank = self.rank * len(of_tasks)
                    layers[name], share = rules.whole(of_tasks, rule, density=density, draw=draw, rank=rank)
                    kept.append(share)
        return Merged(layers, sum(kept) / len(kept) if kept else 1.0)

    def finish(self, model: torch.nn.Module) -> None:
        """Merge into the backbone's weights: nothing is left to compute at inference."""
        nn.merge_low_rank(model)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For all tasks, as a LoRA of the rank of all updates together."""
        nn.export_lora(model, folder, dropout=self.dropout)


@dataclass(frozen=True)
class Merged:
    """The merged update of every linear by its name."""

    layers: Mapping[str, rules.LowRank]
    kept: float
    """Mean over the linears of the share of the squared norm that the low rank keeps."""


@dataclass
class MergeReport:
    """What was chosen; kept with the model."""

    seed: int
    how: str = ""
    scale: float = 1.0
    density: float | None = None
    kept: float = 1.0
    tried: list[tuple[float, float, float]] = field(default_factory=list)
    """Scale, density and score on the validation split, lower is better."""

    def notes(self) -> Mapping[str, Any]:
        """``merge`` of the record; nothing before training."""
        if not self.how:
            return {}
        tried = [[scale, density, score if math.isfinite(score) else None] for scale, density, score in self.tried]
        found = {"how": self.how, "scale": self.scale, "density": self.density, "kept": self.kept}
        return {"merge": {**found, **({"tried": tried} if len(tried) > 1 else {})}}


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, nn.LowRankLinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.LowRankLinear))


def _updates(layer: nn.LowRankLinear, tasks: int) -> list[rules.LowRank]:
    """Copies in float64, where decompositions are computed."""
    device = layer.weight.device if layer.weight.device.type == "cuda" else "cpu"

    def of(name: str) -> Tensor:
        return layer.get_parameter(name).detach().to(device, copy=True).double()

    return [rules.LowRank(of(f"up_{task}"), of(f"down_{task}")) for task in range(tasks)]


def _put(model: torch.nn.Module, merged: Merged, *, tasks: int, scale: float) -> None:
    """Write the merged updates into the parameters: each task's pair holds a part of the ranks."""
    for name, layer in _layers(model):
        up, down = scale * merged.layers[name].up, merged.layers[name].down
        rank = layer.get_parameter("down_0").shape[0]
        for task in range(tasks):
            at = slice(task * rank, (task + 1) * rank)
            own_up, own_down = layer.get_parameter(f"up_{task}"), layer.get_parameter(f"down_{task}")
            own_up.zero_()[:, : up[:, at].shape[1]].copy_(up[:, at])
            own_down.zero_()[: down[at].shape[0]].copy_(down[at])


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, stage: Stage, scale: float) -> nn.Factors:
    """Those of the task in training, otherwise all pairs side by side: their sum, for rows of any task."""
    import torch

    if stage.task is not None:
        return nn.Factors(parameters[f"down_{stage.task}"], parameters[f"up_{stage.task}"], scale=scale)
    down = torch.cat([parameters[f"down_{task}"] for task in range(stage.tasks)], 0)
    up = torch.cat([parameters[f"up_{task}"] for task in range(stage.tasks)], 1)
    return nn.Factors(down, up, scale=scale)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Merge]
