"""Multi-head routing (MHR): Polytropon with a mixture of its own for every block of a linear's input and output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mtlbench import Method, hookimpl
from mtlbench_methods.poly import Poly
from mtlbench_methods.settings import check


@dataclass(frozen=True, kw_only=True)
class Mhr(Poly):
    """Poly whose ``A_t`` and ``B_t`` are cut along the input and output into ``splits`` blocks.

    Block q of both is ``sum_k w_tqk A_qk`` and ``sum_k w_tqk B_qk`` with weights normalised within the block, so only
    the logits grow with ``splits``. Four splits is the setting of the C-Poly author's peft example; mttl's T0 recipe
    is ``rank=1,skills=8,splits=64,target=all,gumbel=false,init_bound=mttl,logits_lr=100``.
    """

    name: ClassVar[str] = "mhr"
    source: ClassVar[str] = (
        "Caccia et al. 2022, arXiv:2211.03831; huggingface/peft 0.21.2: peft.tuners.poly (n_splits); "
        "microsoft/mttl@c66b20d:mttl/models/modifiers/poly.py"
    )

    splits: int = 4
    """Must divide the input and output width of every targeted linear."""

    @property
    def blocks(self) -> int:
        return self.splits

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "splits", holds=self.splits >= 1, allowed="a whole number of at least 1")


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Mhr]
