"""Which tasks share an adapter at which depth, decided by how alike their gradients are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.compat import parameters_of
from mtlbench.nn.low_rank.layer import BatchRows, Factors, LowRankLinear

Group = tuple[int, ...]
"""Task ids in ascending order."""
PROBE = "probe"


def branch_counts(stages: int, tasks: int) -> tuple[int, ...]:
    """Groups in each stage: one in the first, as many as tasks in the last, half of those of the next between."""
    return (1, *(-(-tasks // 2 ** (stages - 1 - stage)) for stage in range(1, stages)))


def group_tasks(similarity: Tensor, count: int, within: Sequence[Group]) -> tuple[Group, ...]:
    """At most ``count`` groups of like tasks by average linkage, none of which joins tasks of two groups ``within``.

    Args:
        similarity: ``[tasks, tasks]``, on the processor.
        count: As many groups, or as many as ``within`` where that has more.
    """
    parent = {task: number for number, group in enumerate(within) for task in group}
    groups: list[Group] = [(task,) for task in sorted(parent)]
    while len(groups) > max(count, len(within)):
        pairs = [
            (float(similarity[list(one)][:, list(other)].mean()), -i, -j)
            for i, one in enumerate(groups)
            for j, other in enumerate(groups)
            if i < j and parent[one[0]] == parent[other[0]]
        ]
        _, i, j = max(pairs)
        joined = tuple(sorted((*groups[-i], *groups[-j])))
        groups = [group for at, group in enumerate(groups) if at not in (-i, -j)]
        groups.append(joined)
    return tuple(sorted(groups))


class BranchingLinear(LowRankLinear):
    """A linear with one low-rank part for all tasks, and after :meth:`split` one for each group of tasks.

    Until then a ``probe [tasks, out, rank]`` of zeros stands beside the up-projection: its gradient is that of each
    task. Several groups are told by the names of the parameters: ``up_0_2`` is the up-projection of tasks 0 and 2.
    """

    group_of: Tensor

    def __init__(
        self, base: nn.Linear, parameters: Mapping[str, Tensor], *, tasks: int, scale: float, **given: Any
    ) -> None:
        probe = torch.zeros(tasks, *parameters["up"].shape)
        super().__init__(base, {**parameters, PROBE: probe}, self._grouped, **given)
        self._scale = scale
        self.register_buffer("group_of", torch.zeros(tasks, dtype=torch.int64, device=base.weight.device), False)

    @torch.no_grad()
    def split(self, groups: Sequence[Group]) -> None:
        """Give each of ``groups`` a copy of what all had; a single one keeps it."""
        delattr(self, PROBE)
        if len(groups) == 1:
            return
        shared = {name: self.get_parameter(name).detach() for name in ("down", "up")}
        for name in shared:
            delattr(self, name)
        for number, group in enumerate(groups):
            self.group_of[list(group)] = number
            for name, value in shared.items():
                self.register_parameter("_".join((name, *map(str, group))), nn.Parameter(value.clone()))

    def shrink_to(self, names: set[str]) -> None:
        """Split as the one that ``names`` were saved of, if it was."""
        if PROBE in parameters_of(self) and PROBE not in names:
            self.split(_groups(names) or [tuple(range(len(self.group_of)))])

    def groups(self) -> tuple[Group, ...]:
        """Of tasks that share a part; empty before they do."""
        if PROBE in parameters_of(self):
            return ()
        return tuple(_groups(parameters_of(self))) or (tuple(range(len(self.group_of))),)

    def _grouped(self, parameters: Mapping[str, Tensor], rows: BatchRows) -> Factors:
        if PROBE in parameters:
            probed = (parameters["up"] + parameters[PROBE]).index_select(0, rows.tasks)
            return Factors(parameters["down"], probed, scale=self._scale)
        down, up = ([p for name, p in parameters.items() if name.startswith(part)] for part in ("down_", "up_"))
        if not up:
            return Factors(parameters["down"], parameters["up"], scale=self._scale)
        of_rows = self.group_of.index_select(0, rows.tasks)
        return Factors(
            torch.stack(down).index_select(0, of_rows), torch.stack(up).index_select(0, of_rows), scale=self._scale
        )


def _groups(names: Iterable[str]) -> list[Group]:
    return sorted(tuple(map(int, name.split("_")[1:])) for name in names if name.startswith("up_"))


class TaskGradients(nn.Module):
    """Mean unit gradient of each task for each stage, summed where the gradients are.

    The mean cosine of two tasks' gradients over all pairs of batches is the product of their mean unit gradients.

    Args:
        stages: The linears of each stage; some may have none.
        tasks: How many.

    Attributes:
        first_step: Gradients of steps before it are left out.
    """

    def __init__(self, stages: Sequence[Sequence[BranchingLinear]], tasks: int) -> None:
        super().__init__()
        self.tasks, self.first_step = tasks, 0
        self._stages = tuple(tuple(stage) for stage in stages)
        for number, stage in self._present():
            device = stage[0].base.weight.device
            size = sum(linear.get_parameter("up").numel() for linear in stage)
            self.register_buffer(f"sum_{number}", torch.zeros(tasks, size, device=device))
            self.register_buffer(f"seen_{number}", torch.zeros(tasks, device=device))

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Take in the gradients of a step. A task without rows in it has none. No device waits."""
        if step < self.first_step:
            return
        for number, stage in self._present():
            probes = [linear.get_parameter(PROBE) for linear in stage]
            self.add(number, torch.cat([p.grad.flatten(1) for p in probes if p.grad is not None], dim=1))

    def add(self, number: int, gradients: Tensor) -> None:
        """Take in ``gradients [tasks, size]`` of stage ``number``."""
        norms = gradients.norm(dim=1, keepdim=True)
        self.get_buffer(f"sum_{number}").add_(gradients / norms.clamp(min=torch.finfo(norms.dtype).tiny))
        self.get_buffer(f"seen_{number}").add_((norms[:, 0] > 0).to(norms.dtype))

    def similarity(self, number: int) -> Tensor:
        """``[tasks, tasks]`` of stage ``number``, on the processor; zero for a task that was never seen."""
        mean = self.get_buffer(f"sum_{number}") / self.get_buffer(f"seen_{number}").clamp(min=1)[:, None]
        return (mean @ mean.t()).cpu()

    def branch(self, counts: Sequence[int]) -> list[tuple[Group, ...]]:
        """Split the tasks further in every stage, and the adapters with them. The groups of each stage."""
        groups: tuple[Group, ...] = (tuple(range(self.tasks)),)
        found = []
        for number, stage in self._present():
            groups = group_tasks(self.similarity(number), counts[number], groups)
            for linear in stage:
                linear.split(groups)
            found.append(groups)
        return found

    def _present(self) -> list[tuple[int, tuple[BranchingLinear, ...]]]:
        """The stages that have layers, with their numbers."""
        return [(number, stage) for number, stage in enumerate(self._stages) if stage]
