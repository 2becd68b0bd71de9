"""MoLoRA: a mixture of LoRA experts, routed by token or by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.settings import check, check_low_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtlbench import RowSums


ROUTER = ("router", "tasks")


@dataclass(frozen=True, kw_only=True)
class MoLora(Method):
    """``y = W x + b + alpha/rank sum_e p_e B_e A_e dropout(x)`` with ``p = softmax(G x)`` for every token.

    Every expert has the full rank, and all of them compute (``top_k`` keeps the k largest shares of a token and
    normalises them again, as MoLA does). ``alpha / rank`` is 4 as in the reference code.

    The default of 4 experts of rank 2 is the row ``MOE-LoRA`` of C-Poly's tables, which PEML's Tables 4 and 9 copy. Its
    gate is not published. It is taken as this one, by token: C-Poly's reviewers name MoLoRA as the work that the row
    goes back to, and gated by task it would differ little from Poly, the next row. ``gate=task`` is that other reading:
    ``p`` from a learned embedding of the task. The rows ``MoELoRA`` of PEML's Tables 2 and 6 are ``moelora``.

    ``balance`` adds that multiple of ``E sum_e f_e P_e`` to the loss of a step, averaged over the adapted linears:
    ``f_e`` is the expert's part of the experts that tokens keep (their first choice where all are kept) and ``P_e`` its
    mean probability, over all tokens of the step without padding (Fedus et al. 2022, arXiv:2101.03961, eq. 4 to 6, who
    take 0.01). The reference code has this loss in ``src/routing.py``, for each sequence, and never adds it.
    """

    name: ClassVar[str] = "molora"
    source: ClassVar[str] = (
        "Zadouri et al. 2023, arXiv:2309.05444; for-ai/parameter-efficient-moe@e2683fe:src/molora.py"
    )
    size_field: ClassVar[str] = "rank"

    rank: int = 2
    """Of each expert."""
    experts: int = 4
    alpha: float = 8.0
    gate: str = "token"
    """``token`` or ``task``."""
    top_k: int = 0
    """Experts that a token keeps; 0 keeps all."""
    task_width: int = 64
    """Width of the task embeddings with ``gate=task``."""
    balance: float = 0.0
    """Weight of the load-balance loss."""
    dropout: float = 0.0
    target: str = "all"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``."""

    def __post_init__(self) -> None:
        check_low_rank(self)
        check(self, "experts", holds=self.experts >= 1, allowed="a whole number of at least 1")
        check(self, "gate", holds=self.gate in ("token", "task"), allowed="token or task")
        check(self, "top_k", holds=0 <= self.top_k <= self.experts, allowed=f"from 0 to experts={self.experts}")
        check(self, "task_width", holds=self.task_width >= 1, allowed="a whole number of at least 1")

        check(self, "balance", holds=0 <= self.balance < float("inf"), allowed="a number of at least 0")

    @property
    def task_routed(self) -> bool:
        return self.gate == "task"

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.balance > 0

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: torch.nn.Module) -> Tensor:
        import torch

        losses = [nn.load_balance(layer.values, layer.tokens) for layer in sums.values()]
        return self.balance * torch.stack(losses).mean()

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        wide, by_token = self.experts * self.rank, self.gate == "token"
        of = partial(factors, rank=self.rank, top_k=self.top_k, scale=self.alpha / self.rank)

        def make(name: str, base: torch.nn.Linear) -> nn.LowRankLinear:
            draw = nn.seeded_generator(setup.seed, name)
            parameters = {
                "down": 0.02 * torch.randn(wide, base.in_features, generator=draw),
                "up": torch.zeros(base.out_features, wide),
            }
            if by_token:
                parameters["router"] = 0.02 * torch.randn(self.experts, base.in_features, generator=draw)
            else:
                parameters["tasks"] = torch.randn(len(setup.tasks), self.task_width, generator=draw)
                parameters["router"] = 0.02 * torch.randn(self.experts, self.task_width, generator=draw)
            return nn.LowRankLinear(
                base, parameters, of, routing=setup.routing, dropout=self.dropout, reads_input=by_token
            )

        nn.adapt(model, nn.select_linears(setup.target_modules, self.target), make)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        return nn.optimizer_groups(model, learning_rate, no_decay=ROUTER)

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """With ``gate=task``, for one task, as a LoRA of rank ``experts * rank``."""
        nn.export_lora(model, folder, task=task, dropout=self.dropout)


def factors(parameters: Mapping[str, Tensor], rows: nn.BatchRows, *, rank: int, top_k: int, scale: float) -> nn.Factors:
    """``down [experts * rank, in]`` and ``up [out, experts * rank]`` hold all experts; ``router [experts, width]``."""
    router, tasks = parameters["router"], parameters.get("tasks")
    shares = token_shares(rows.x if tasks is None else tasks, router)
    if tasks is not None:
        shares = shares.index_select(0, rows.tasks).unsqueeze(1)
    report = nn.routing_report(shares, shares.topk(top_k or 1, dim=-1).indices) if rows.reports else None
    gate = (kept(shares, top_k) if top_k else shares).repeat_interleave(rank, dim=-1)
    return nn.Factors(down=parameters["down"], up=parameters["up"], gate=gate, scale=scale, report=report)


def token_shares(x: Tensor, router: Tensor) -> Tensor:
    """``softmax(router x) [..., experts]`` of ``x [..., width]``, at least float32."""
    import torch

    logits = torch.nn.functional.linear(x, router.to(x.dtype))
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def kept(shares: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` largest of the shares ``[..., experts]``, which then sum to one again; zeros elsewhere."""
    import torch

    largest = shares.topk(top_k, dim=-1)
    few = torch.zeros_like(shares).scatter(-1, largest.indices, largest.values)
    return few / few.sum(-1, keepdim=True)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [MoLora]
