"""Several methods on one backbone as one method."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mtlbench.api.method import Method, Setup, Stateful, Trainer, Value
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.attachments import attach_state, get_state

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtlbench.api.method import Answers
    from mtlbench.api.routing import RowSums


@dataclass(frozen=True)
class PartParameters:
    """The parameters that each part of a composition attached to a model."""

    by_part: Sequence[Sequence[nn.Parameter]]


Verb = Literal["fit", "adapt"]


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """Several methods, its parts, attached to one backbone and trained on one loss.

    The loss over rows is that of the first part that defines one, plus the penalties of the others. The training
    procedures of the parts (search, rank budgets, stages) are nested.
    """

    resumable: ClassVar[bool] = True

    @abstractmethod
    def parts(self) -> tuple[Method, ...]:
        """The methods, in the order they are attached."""

    def turns(self) -> tuple[int, ...] | None:
        """Indices of the parts in the order of sequential training; ``None`` trains all parts in every step.

        In sequential training each part has an equal share of the budget, in which the others are frozen and later
        ones switched off.
        """
        return None

    def resumes(self) -> bool:
        return super().resumes() and all(part.resumes() for part in self.parts())

    def refuse(self, setup: Setup) -> str | None:
        reasons = (part.refuse(self._share(setup)) for part in self.parts())
        return next((reason for reason in reasons if reason), None)

    def attach(self, model: nn.Module, setup: Setup) -> None:
        owned: list[list[nn.Parameter]] = []
        for part in self.parts():
            before = {id(p) for p in model.parameters() if p.requires_grad}
            part.attach(model, self._share(setup))
            owned.append([p for p in model.parameters() if p.requires_grad and id(p) not in before])
        attach_state(model, PartParameters(owned))

    def _share(self, setup: Setup) -> Setup:
        if self.turns() is None:
            return setup
        return dataclasses.replace(setup, total_steps=max(1, round(setup.total_steps / len(self.parts()))))

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        for at, part in enumerate(self.parts()):
            trained = [p for p in _owned(model)[at] if p.requires_grad]
            if not trained:
                continue
            rate = learning_rate if part.learning_rate is None or self.learning_rate is not None else part.learning_rate
            with _only(model, trained):
                groups += part.param_groups(model, rate)
        return groups

    def row_losses(self, model: nn.Module, answers: Answers) -> Tensor:
        """The losses of the first part that defines them."""
        parts = self.parts()
        leader = next((part for part in parts if type(part).row_losses is not Method.row_losses), parts[0])
        return leader.row_losses(model, answers)

    @property
    def searches(self) -> bool:
        return any(part.searches for part in self.parts())

    @property
    def supports_quantized(self) -> bool:
        return all(part.supports_quantized for part in self.parts())

    @property
    def weighting(self) -> str:
        """That of the first part which declares another than the usual one."""
        return next((part.weighting for part in self.parts() if part.weighting != "rows"), "rows")

    @property
    def has_auxiliary_loss(self) -> bool:
        return any(part.has_auxiliary_loss for part in self.parts())

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: nn.Module) -> Tensor:
        """The sum of those of the parts. One part adapts weights, so that what layers report is that part's."""
        terms = [part.auxiliary_loss(sums, tasks, model) for part in self.parts() if part.has_auxiliary_loss]
        return sum(terms[1:], terms[0])

    def owns_loss(self) -> bool:
        return any(part.owns_loss() for part in self.parts())

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [term for part in self.parts() if (term := part.penalty(model)) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def loss(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        parts = self.parts()
        leader = next((part for part in parts if part.owns_loss()), None)
        if leader is None:
            return super().loss(row_losses, tasks, model)
        loss = leader.loss(row_losses, tasks, model)
        for part in parts:
            penalty = None if part is leader else part.penalty(model)
            loss = loss if penalty is None else loss + penalty
        return loss

    def after_step(self, model: nn.Module, step: int) -> None:
        for part, parameters in zip(self.parts(), _owned(model), strict=True):
            if any(p.requires_grad for p in parameters):
                part.after_step(model, step)

    def fit(self, model: nn.Module, trainer: Trainer) -> None:
        self._by_parts(model, trainer, "fit")

    def adapt(self, model: nn.Module, trainer: Trainer) -> None:
        self._by_parts(model, trainer, "adapt")

    def _by_parts(self, model: nn.Module, trainer: Trainer, verb: Verb) -> None:
        parts, owned, turns = self.parts(), _owned(model), self.turns()
        if turns is None:
            _nested(model, trainer, parts, verb)
            return
        try:
            for at, turn in enumerate(turns):
                for other in range(len(parts)):
                    _train(owned[other], other == turn)
                    parts[other].switch(model, on=other in turns[: at + 1])
                _nested(model, _ShareTrainer(trainer, 1 / len(parts)), [parts[turn]], verb)
        finally:
            for parameters in owned:
                _train(parameters, True)

    def finish(self, model: nn.Module) -> None:
        for part in self.parts():
            part.finish(model)

    def switch(self, model: nn.Module, *, on: bool) -> None:
        for part in self.parts():
            part.switch(model, on=on)

    def export(self, model: nn.Module, folder: Path, *, task: int | None = None) -> None:
        """Export each part to ``folder/<its name>``.

        A composition of weights and a prefix also has ``folder/merged``, the backbone with merged weights, on which
        plain peft loads the prefix. ``model`` is merged afterwards.
        """
        from mtlbench.backbones.quantized import quantized_linears
        from mtlbench.errors import PluginError
        from mtlbench.nn.low_rank.layer import merge_low_rank
        from mtlbench.nn.prefixes.export import save_merged

        weights = [part for part in self.parts() if part.adapts == "weights"]
        for part in weights:
            part.export(model, folder / part.name, task=task if part.task_routed else None)
        config: Any = model.config
        if weights and len(weights) < len(self.parts()):
            if any(True for _ in quantized_linears(model)):
                raise PluginError(
                    f"{self.name} is exported as a merged backbone with a prefix, and a quantised backbone is not "
                    "merged. Use --form mtlbench."
                )
            merge_low_rank(model, task)
            save_merged(model, folder / "merged")
            config.name_or_path = str(folder / "merged")
        for part in self.parts():
            if part.adapts != "weights":
                part.export(model, folder / part.name, task=task if part.task_routed else None)


class _OfMembers:
    """Text of a composition: of the class as it is, of an object as its members make it."""

    def __init__(self, of_class: str, join: Callable[[Sequence[Method]], str]) -> None:
        self._of_class, self._join = of_class, join

    def __get__(self, composed: Sum | None, cls: type[Sum]) -> str:
        return self._of_class if composed is None else self._join(composed.members)


_ORDERS = ("parallel", "in_turn", "in_reverse")


@dataclass(frozen=True, kw_only=True)
class Sum(Composite):
    """``prefixnas+lora``: methods composed by name; their settings are named ``prefixnas.layers``."""

    name = _OfMembers("+", lambda members: "+".join(part.name for part in members))
    source = _OfMembers("composition", lambda members: "; ".join(part.source for part in members))
    members: tuple[Method, ...] = ()
    order: str = "parallel"
    """``parallel`` trains all members in every step, ``in_turn`` one after another, ``in_reverse`` from the last to the
    first."""

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise RequestError(f"+[order={self.order}]: order must be {' or '.join(_ORDERS)}.")
        for part in self.members:
            if not part.composable:
                raise RequestError(f"{self.name}: {part.name} cannot be composed with other methods.")
            same = [other.name for other in self.members if other.adapts == part.adapts]
            if len(same) > 1:
                raise RequestError(
                    f"{self.name}: {' and '.join(same)} both change the {part.adapts} of the backbone. Compose a "
                    "method that adapts weights with one that trains a prefix, such as prefixnas+mtl_lora."
                )

    @property
    def task_routed(self) -> bool:
        return any(part.task_routed for part in self.members)

    @property
    def identity_at_start(self) -> bool:
        return all(part.identity_at_start for part in self.members)

    def parts(self) -> tuple[Method, ...]:
        return self.members

    def turns(self) -> tuple[int, ...] | None:
        if self.order == "parallel":
            return None
        forward = tuple(range(len(self.members)))
        return forward if self.order == "in_turn" else forward[::-1]

    @classmethod
    def setting_types(cls, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """The types of its own settings, without those of the members."""
        return {name: hint for name, hint in super().setting_types(texts).items() if name != "members"}

    def settings(self) -> dict[str, Value]:
        """The settings of all members, as ``member.setting``, and ``order``."""
        of_members = {f"{part.name}.{name}": value for part in self.members for name, value in part.settings().items()}
        return {"order": self.order, "learning_rate": self.learning_rate, **of_members}


def _nested(model: nn.Module, trainer: Trainer, parts: Sequence[Method], verb: Verb) -> None:
    """``fit`` or ``adapt`` of all parts together, each nested in the previous one."""
    inner = trainer
    for part in reversed(parts):
        inner = _NestedTrainer(inner, part, model, verb)
    inner.run()


class _NestedTrainer:
    """A trainer whose every run is a complete ``fit`` or ``adapt`` of one part, with the caller's hooks."""

    def __init__(self, trainer: Trainer, part: Method, model: nn.Module, verb: Verb) -> None:
        self._trainer, self._part, self._model, self._verb = trainer, part, model, verb

    @property
    def total_steps(self) -> int:
        return self._trainer.total_steps

    def run(self, **arguments: Any) -> None:
        train = self._part.fit if self._verb == "fit" else self._part.adapt
        train(self._model, _HookedTrainer(self._trainer, arguments))

    def keep(self, holder: Stateful, *, modules: Iterable[nn.Module] = ()) -> None:
        self._trainer.keep(holder, modules=modules)

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        return self._trainer.search_loss(share=share)

    def validation_score(self) -> float:
        return self._trainer.validation_score()

    def inherit(self) -> bool:
        return False


class _HookedTrainer:
    """A trainer that adds the arguments of an outer call to every run."""

    def __init__(self, trainer: Trainer, outer: Mapping[str, Any]) -> None:
        self._trainer, self._outer = trainer, outer

    @property
    def total_steps(self) -> int:
        return self._trainer.total_steps

    def run(self, **arguments: Any) -> None:
        both = [hook for hook in (self._outer.get("before_step"), arguments.get("before_step")) if hook is not None]
        merged = {**self._outer, **{name: value for name, value in arguments.items() if value is not None}}
        merged["patience_from"] = max(self._outer.get("patience_from", 0), arguments.get("patience_from", 0))
        merged["before_step"] = _all_of(both) if both else None
        if self._outer.get("tasks") is not None and arguments.get("tasks") is not None:
            raise PluginError("Two composed methods both train tasks one after another. Compose at most one of them.")
        self._trainer.run(**merged)

    def keep(self, holder: Stateful, *, modules: Iterable[nn.Module] = ()) -> None:
        self._trainer.keep(holder, modules=modules)

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        return self._trainer.search_loss(share=share)

    def validation_score(self) -> float:
        return self._trainer.validation_score()

    def inherit(self) -> bool:
        return False


class _ShareTrainer:
    """A trainer with a fraction of the budget."""

    def __init__(self, trainer: Trainer, share: float) -> None:
        self._trainer, self._share = trainer, share

    @property
    def total_steps(self) -> int:
        return max(1, round(self._trainer.total_steps * self._share))

    def run(self, **arguments: Any) -> None:
        self._trainer.run(**{**arguments, "share": self._share * arguments.get("share", 1.0)})

    def keep(self, holder: Stateful, *, modules: Iterable[nn.Module] = ()) -> None:
        self._trainer.keep(holder, modules=modules)

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        return self._trainer.search_loss(share=share)

    def validation_score(self) -> float:
        return self._trainer.validation_score()

    def inherit(self) -> bool:
        return False


def _all_of(hooks: Sequence[Callable[[int], None]]) -> Callable[[int], None]:
    def run(step: int) -> None:
        for hook in hooks:
            hook(step)

    return run


def _owned(model: nn.Module) -> list[list[nn.Parameter]]:
    """For each part the parameters that it attached and that are still in the model."""
    alive = {id(p) for p in model.parameters()}
    return [[p for p in parameters if id(p) in alive] for parameters in get_state(model, PartParameters).by_part]


def _train(parameters: Sequence[Any], on: bool) -> None:
    for p in parameters:
        p.requires_grad_(on)


class _only:
    """Context in which only these parameters require gradients, so that a part sees only its own."""

    def __init__(self, model: nn.Module, wanted: Sequence[Any]) -> None:
        wanted_ids = {id(p) for p in wanted}
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted_ids]

    def __enter__(self) -> None:
        _train(self._others, False)

    def __exit__(self, *_: object) -> None:
        _train(self._others, True)
