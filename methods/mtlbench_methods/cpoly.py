"""Customized Polytropon (C-Poly): skills common to all tasks next to skills of each task's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.poly import check_skills, require_splits, skill_groups
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MIXES = ("params", "outputs")
SPECIFIC = ("eye_trainable", "onehot")


@dataclass(frozen=True, kw_only=True)
class CPoly(Method):
    """Poly over ``common`` skills, plus ``specific_skills`` of every task.

    Common skills are weighted as in :class:`~mtlbench_methods.poly.Poly`, private ones by the raw row ``c_t`` of a
    table that starts with ones at the task's own skills and zeros elsewhere: no sigmoid, no sum to one, no noise, so
    tasks may borrow each other's skills. The paper sums the outputs of the skills, its author's code their parameters
    (``A_t = sum_k w_k A_k`` and ``B_t`` likewise, scaled by ``alpha/rank``); the code is the default. The code's router
    cannot run on more than one task as published; one shape is corrected here. More than one private skill is in the
    paper only; each then starts with weight one.
    """

    name: ClassVar[str] = "cpoly"
    source: ClassVar[str] = (
        "Wang et al. 2024, arXiv:2312.03248; TaoSunVoyage/peft@fde7b65:src/peft/tuners/poly (huggingface/peft#1297)"
    )
    task_routed: ClassVar[bool] = True
    size_field: ClassVar[str] = "rank"

    rank: int = 2
    common: int = 3
    """Skills shared by all tasks."""
    specific_skills: int = 1
    """Skills of each task's own."""
    specific: str = "eye_trainable"
    """``eye_trainable``: the table is trained; ``onehot``: fixed, and skills of other tasks are not even read."""
    mix: str = "params"
    """Mix the ``params`` or the ``outputs`` of skills."""
    splits: int = 1
    """Blocks with a mixture of common skills of their own, as in multi-head routing."""
    alpha: float = 1.0
    gumbel: bool = True
    """Noise on the logits of the common skills in training."""
    init_bound: str = "peft"
    """A starts uniform in ``±sqrt(splits / in)`` (``peft``) or ``±1 / sqrt(3 in)`` (``mttl``); B starts at zero."""
    logits_lr: float = 1.0
    """Times the learning rate for the logits."""
    target: str = "attention"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_skills(self)
        for setting in ("common", "specific_skills", "splits"):
            check(self, setting, holds=getattr(self, setting) >= 1, allowed="a whole number of at least 1")
        check(self, "mix", holds=self.mix in MIXES, allowed=f"one of {', '.join(MIXES)}")
        check(self, "specific", holds=self.specific in SPECIFIC, allowed=f"one of {', '.join(SPECIFIC)}")
        whole = self.splits == 1 or self.mix == "params"
        check(self, "splits", holds=whole, allowed="1 with mix=outputs: an output has one weight per skill")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        tasks, splits, names = len(setup.tasks), self.splits, nn.select_linears(setup.target_modules, self.target)
        require_splits(setup.shapes, names, splits)
        skills = self.common + tasks * self.specific_skills
        router = nn.SkillRouter(gumbel=self.gumbel)
        of = partial(factors, scale=self.alpha / self.rank, router=router, mix=self.mix, own=self.specific_skills)
        layers: list[nn.LowRankLinear] = []

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": nn.init_skills(splits, skills, self.rank, base.in_features, bound=self.init_bound, draw=draw),
                "up": torch.zeros(splits, skills, self.rank, base.out_features // splits),
                "logits": nn.init_router_logits(tasks, splits, self.common, draw=draw),
            }
            if self.specific == "eye_trainable":
                parameters["specific"] = torch.eye(tasks).repeat_interleave(self.specific_skills, dim=1)
            layers.append(nn.LowRankLinear(base, parameters, of, routing=setup.routing))
            return layers[-1]

        nn.adapt(model, names, make)
        used = (self.common + self.specific_skills) * self.rank * sum(sum(setup.shapes[name]) for name in names)
        weights = splits * self.common + (tasks * self.specific_skills if self.specific == "eye_trainable" else 0)
        notes = nn.SkillUsage(
            layers, router=router, tasks=[task.name for task in setup.tasks], active=used + len(names) * weights
        )
        nn.attach_module(model, "mtlbench_skills", notes)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return skill_groups(model, learning_rate, logits_lr=self.logits_lr)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA: of the same rank, or with ``mix=outputs`` of the rank of all its skills together."""
        nn.export_lora(model, folder, task=task)


def factors(
    parameters: Mapping[str, Tensor],
    rows: nn.BatchRows,
    *,
    scale: float,
    router: nn.SkillRouter,
    mix: str,
    own: int,
    noise: Tensor | None = None,
) -> nn.Factors:
    """What the rows' common and private skills amount to.

    Args:
        parameters: ``down [splits, skills, rank, in / splits]`` and ``up [splits, skills, rank, out / splits]``, common
            skills first and then each task's own; ``logits [tasks, splits, common]``; unless private skills have a
            fixed weight of one, ``specific [tasks, tasks * own]``.
        noise: As of :func:`~mtlbench.nn.low_rank.skills.mixing_weights`.
    """
    import torch

    down, up, tasks = parameters["down"], parameters["up"], rows.tasks
    logits = parameters["logits"].index_select(0, tasks)
    common = nn.mixing_weights(logits, router, training=rows.training, noise=noise)
    if "specific" in parameters:
        raw = parameters["specific"].index_select(0, tasks).unsqueeze(1).expand(-1, common.shape[1], -1)
        weights = torch.cat([common, raw], dim=-1)
        if mix == "params":
            return nn.Factors(nn.mix_skills(weights, down), nn.mix_skills(weights, up).transpose(1, 2), scale=scale)
        return nn.Factors(down.flatten(0, 2), up.flatten(0, 2).t(), gate=_gate(weights, down.shape[2]), scale=scale)
    sizes = [common.shape[-1], down.shape[1] - common.shape[-1]]
    shared_down, private_down = torch.split(down, sizes, dim=1)
    shared_up, private_up = torch.split(up, sizes, dim=1)
    own_down, own_up = (
        nn.select_skills(private_down, tasks, each=own),
        nn.select_skills(private_up, tasks, each=own),
    )
    if mix == "params":
        mixed_down = nn.mix_skills(common, shared_down) + own_down.sum(1)
        mixed_up = nn.mix_skills(common, shared_up) + own_up.sum(1)
        return nn.Factors(mixed_down, mixed_up.transpose(1, 2), scale=scale)
    count = common.shape[0]
    weights = torch.cat([common, common.new_ones(count, 1, own)], dim=-1)
    all_down = torch.cat([shared_down.expand(count, -1, -1, -1), own_down], dim=1)
    all_up = torch.cat([shared_up.expand(count, -1, -1, -1), own_up], dim=1)
    gate = _gate(weights, down.shape[2])
    return nn.Factors(all_down.flatten(1, 2), all_up.flatten(1, 2).transpose(1, 2), gate=gate, scale=scale)


def _gate(weights: Tensor, rank: int) -> Tensor:
    """Weights ``[rows, 1, skills]`` for all ranks of each skill, ``[rows, 1, skills * rank]``."""
    return weights.unsqueeze(-1).expand(-1, -1, -1, rank).flatten(2)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [CPoly]
