"""Polytropon (Poly): tasks mix the parameters of a shared inventory of low-rank skills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench.errors import RequestError
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor


GRANULARITIES = ("finegrained", "layerwise", "blockwise", "coderwise", "coarsegrained")
INIT_BOUNDS = ("peft", "mttl")


@dataclass(frozen=True, kw_only=True)
class Poly(Method):
    """``y = W x + b + alpha/rank B_t A_t x`` with ``A_t = sum_k w_tk A_k`` and ``B_t = sum_k w_tk B_k``.

    A and B are mixed apart, so cross terms ``B_j A_k`` are part of the method. The weights ``w_t`` are a task's
    Gumbel-sigmoid logits divided by their sum; in training, every row and layer has noise of its own. There is no
    dropout on the input. Rank and skills are those reported for C-Poly's baselines; scaling, noise and draws are
    peft's; ``target`` is ours, as peft's (``q+v`` on T5, ``q_proj+v_proj`` on Llama) differs by backbone.

    For microsoft/mttl's training set ``init_bound=mttl,logits_lr=100``, for its T0 recipe ``gumbel=false`` too. Two
    things differ from that code on purpose: ``logit_dropout`` is off in evaluation, and logits do not decay. Its
    auxiliary losses, whose coefficients are zero by default, are not offered.
    """

    name: ClassVar[str] = "poly"
    source: ClassVar[str] = (
        "Ponti et al. 2022, arXiv:2202.13914; huggingface/peft 0.21.2: peft.tuners.poly; "
        "microsoft/mttl@c66b20d:mttl/models/modifiers/poly.py"
    )
    task_routed: ClassVar[bool] = True
    size_field: ClassVar[str] = "rank"

    rank: int = 2
    skills: int = 4
    alpha: float = 1.0
    gumbel: bool = True
    """Noise on the logits in training."""
    straight_through: bool = False
    """Use skills whole or not at all, with the gradient of the sigmoid. Needs ``gumbel=false``."""
    l2_norm: bool = False
    """Logits over their Euclidean norm are the weights. Needs every other option of the router off."""
    logit_dropout: float = 0.0
    """Chance in training that a skill is left out of a row's mixture."""
    shared_skill: bool = False
    """The last skill takes part in full in every task."""
    average_correction: bool = False
    """Scale weights by ``sqrt(splits / skills)`` instead of dividing by their sum."""
    granularity: str = "finegrained"
    """Who shares logits: ``finegrained`` nobody, ``layerwise`` an attention or feed-forward block, ``blockwise`` a
    transformer block, ``coderwise`` the encoder or decoder, ``coarsegrained`` all. Noise stays per linear."""
    init_bound: str = "peft"
    """A starts uniform in ``±sqrt(splits / in)`` (``peft``) or ``±1 / sqrt(3 in)`` (``mttl``); B starts at zero."""
    logits_lr: float = 1.0
    """Times the learning rate for the logits."""
    target: str = "attention"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    @property
    def blocks(self) -> int:
        """Blocks of the input and the output with a mixture of their own."""
        return 1

    def __post_init__(self) -> None:
        check_skills(self)
        check(self, "skills", holds=self.skills >= 1, allowed="a whole number of at least 1")
        check(self, "logit_dropout", holds=0 <= self.logit_dropout < 1, allowed="at least 0 and below 1")
        both = self.straight_through and self.gumbel
        check(self, "straight_through", holds=not both, allowed="false unless gumbel=false")
        others = ("gumbel", "straight_through", "logit_dropout", "shared_skill", "average_correction")
        on = [name for name in others if getattr(self, name)]
        check(self, "l2_norm", holds=not (self.l2_norm and on), allowed=f"false unless {' and '.join(on)} are off")
        known = ", ".join(GRANULARITIES)
        check(self, "granularity", holds=self.granularity in GRANULARITIES, allowed=f"one of {known}")

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        splits, names = self.blocks, nn.select_linears(setup.target_modules, self.target)
        require_splits(setup.shapes, names, splits)
        router = nn.SkillRouter(
            gumbel=self.gumbel,
            straight_through=self.straight_through,
            l2_norm=self.l2_norm,
            dropout=self.logit_dropout,
            shared_skill=self.shared_skill,
            average_correction=self.average_correction,
        )
        of = partial(factors, scale=self.alpha / self.rank, router=router)
        logits: dict[str, torch.nn.Parameter] = {}
        layers: list[nn.LowRankLinear] = []

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            sharing = nn.router_name(name, self.granularity)
            if sharing not in logits:
                fresh = nn.init_router_logits(len(setup.tasks), splits, self.skills, draw=draw)
                logits[sharing] = torch.nn.Parameter(fresh.to(base.weight.device))
            parameters = {
                "down": nn.init_skills(
                    splits, self.skills, self.rank, base.in_features, bound=self.init_bound, draw=draw
                ),
                "up": torch.zeros(splits, self.skills, self.rank, base.out_features // splits),
                "logits": logits[sharing],
            }
            layers.append(nn.LowRankLinear(base, parameters, of, routing=setup.routing))
            return layers[-1]

        nn.adapt(model, names, make)
        skills = self.skills * self.rank * sum(sum(setup.shapes[name]) for name in names)
        active = skills + len(logits) * splits * self.skills
        nn.attach_module(
            model,
            "mtlbench_skills",
            nn.SkillUsage(layers, router=router, tasks=[task.name for task in setup.tasks], active=active),
        )

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return skill_groups(model, learning_rate, logits_lr=self.logits_lr)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """For one task, as a LoRA of the same rank."""
        nn.export_lora(model, folder, task=task)


def factors(
    parameters: Mapping[str, Tensor],
    rows: nn.BatchRows,
    *,
    scale: float,
    router: nn.SkillRouter,
    noise: Tensor | None = None,
) -> nn.Factors:
    """Every row's own ``down [rows, rank, in]`` and ``up [rows, out, rank]``, mixed from the skills.

    Args:
        parameters: ``down [splits, skills, rank, in / splits]``, ``up [splits, skills, rank, out / splits]``,
            ``logits [tasks, splits, skills]``.
        noise: As of :func:`~mtlbench.nn.low_rank.skills.mixing_weights`.
    """
    logits = parameters["logits"].index_select(0, rows.tasks)
    weights = nn.mixing_weights(logits, router, training=rows.training, noise=noise)
    up = nn.mix_skills(weights, parameters["up"]).transpose(1, 2)
    return nn.Factors(down=nn.mix_skills(weights, parameters["down"]), up=up, scale=scale)


def check_skills(method: Any) -> None:
    """Check ``rank``, ``alpha``, ``target``, ``init_bound`` and ``logits_lr``."""
    check_low_rank(method)
    check(method, "init_bound", holds=method.init_bound in INIT_BOUNDS, allowed=f"one of {', '.join(INIT_BOUNDS)}")
    rate = method.logits_lr
    check(method, "logits_lr", holds=math.isfinite(rate) and rate > 0, allowed="a number above 0")


def require_splits(shapes: Mapping[str, tuple[int, int]], names: Sequence[str], splits: int) -> None:
    """Refuse a number of splits that does not divide the input and output width of every named linear.

    Raises:
        RequestError: naming the first linear it does not fit, its widths, and what would fit all.
    """
    for name in names:
        out, into = shapes[name]
        if out % splits or into % splits:
            widest = math.gcd(*(width for each in names for width in shapes[each]))
            raise RequestError(
                f"splits={splits} does not divide the widths of {name} ({into} in, {out} out). "
                f"Take a divisor of {widest}, or other targets."
            )


def skill_groups(model: torch.nn.Module, learning_rate: float, *, logits_lr: float) -> list[dict[str, Any]]:
    """Skills; logits at ``logits_lr`` times the rate; weights of private skills. Only skills decay.

    Decay would pull logits to the uniform mixture and private skills out of their own task.
    """
    groups: dict[str, list[Tensor]] = {"skills": [], "logits": [], "specific": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            last = name.rpartition(".")[2]
            groups[last if last in groups else "skills"].append(p)
    return [
        {"params": groups["skills"], "lr": learning_rate},
        {"params": groups["logits"], "lr": learning_rate * logits_lr, "weight_decay": 0.0},
        {"params": groups["specific"], "lr": learning_rate, "weight_decay": 0.0},
    ]


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Poly]
