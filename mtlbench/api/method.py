"""The contract of a method: a recipe that makes a frozen backbone trainable for several tasks at once."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mtlbench.api.routing import Routing, RowSums

Value = bool | int | float | str | None
"""A setting's value: what fits in JSON as a scalar."""


@dataclass(frozen=True)
class SetupTask:
    """One task of a cell."""

    index: int
    """The task id in batches."""
    name: str
    """Full name, such as ``glue/rte``."""
    train_rows: int


@dataclass(frozen=True)
class Setup:
    """The information about a cell that a method gets when it attaches."""

    tasks: tuple[SetupTask, ...]
    routing: Routing
    """Gives layers the task id of every row of the current batch."""
    architecture: str
    """``causal`` or ``seq2seq``."""
    target_modules: tuple[str, ...]
    """Qualified names of every linear projection of the attention and feed-forward blocks, in model order."""
    shapes: Mapping[str, tuple[int, int]]
    """Output and input width of each of them."""
    total_steps: int
    """Optimizer steps of the whole training budget."""
    max_length: int
    """Maximum number of tokens of a row, prompt and answer together."""
    seed: int
    sources: int = 0
    """Number of source tasks: the first tasks, trained in :meth:`Method.fit`; the others follow in
    :meth:`Method.adapt`. 0 if all tasks are trained together."""
    encode: Callable[[str], tuple[int, ...]] | None = None
    """Token ids of a text without special tokens; ``None`` without a tokenizer, as when parameters are counted."""


class Stateful(Protocol):
    """An object with state between steps: an optimizer, a budget, a search."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers, strings, ``None``, and lists and dictionaries of them; a tuple is restored as a list."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore what :meth:`state_dict` returned; tensors are on the CPU."""


class ReadOut(Protocol):
    """Outputs of a model at the label positions of a batch."""

    @property
    def logits(self) -> Tensor:
        """``[labels, vocabulary]``."""

    @property
    def hidden(self) -> Tensor:
        """Last hidden states of the decoder ``[labels, width]``."""


class Answers(Protocol):
    """The answers of a batch: the model's outputs at their tokens, and their losses by token and by row."""

    @property
    def labels(self) -> Tensor:
        """Token ids of the answers ``[labels]``."""

    def logits(self) -> Tensor:
        """Run a forward pass: logits ``[labels, vocabulary]``, computed only where there are labels."""

    def read(self) -> ReadOut:
        """Run a forward pass: logits and the last hidden states."""

    def token_losses(self, logits: Tensor) -> Tensor:
        """Cross entropy of each answer token, float32 ``[labels]``."""

    def by_row(self, values: Tensor) -> Tensor:
        """Means of the tokens' ``values [labels]`` over each row's answer ``[rows]``."""

    def losses(self) -> Tensor:
        """Mean token cross entropy of each row, float32 ``[rows]``."""


class Trainer(Protocol):
    """The interface of the training loop for :meth:`Method.fit`."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole budget."""

    def run(
        self,
        *,
        tasks: Sequence[int] | None = None,
        share: float = 1.0,
        before_step: Callable[[int], None] | None = None,
        patience_from: int = 0,
    ) -> None:
        """Train on all tasks for the whole budget, or on ``tasks`` for their share of the mixture.

        ``share`` is the fraction of that budget to use; runs that share a budget use consecutive batches of it.

        Each run has a new optimizer over the parameters that then require gradients, its own schedule, clipping and
        early stopping on the validation split of its tasks, and restores its best state. The budgets of disjoint sets
        of tasks that cover all tasks sum to the whole budget. A parameter without a gradient is not updated.

        ``before_step(step)`` runs before each step, early stopping starts at step ``patience_from``; steps are
        counted from 0 in each run, for :meth:`Method.after_step` too.
        """

    def keep(self, holder: Stateful, *, modules: Iterable[nn.Module] = ()) -> None:
        """Add the state of ``holder`` to checkpoints. Call it before :meth:`run`.

        ``modules`` are modules of the model whose plain attributes are part of that state.
        """

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        """The method's loss on the next batch of the search split, dropout off, with gradients enabled.

        ``share`` is the size of that batch relative to a training batch; the first call decides it.

        The search split is held out from the training data for choices made by gradient (architecture logits). No
        method trains weights on it, and it is disjoint from the validation split for early stopping.
        """

    def validation_score(self) -> float:
        """How good the model is now on the validation split, lower is better, as early stopping scores it: the mean
        over the tasks of their mean losses, or minus the mean of their metrics. Not finite where the loss is not.

        For choices between models that are already trained, such as a scale of merging. Random states stay as they are.

        Raises:
            RequestError: nothing was held out.
        """

    def inherit(self) -> bool:
        """Take the parameters that a cell of :attr:`Method.built_on` ended with, where the run folder has one with the
        same tasks, protocol, backbone and seed; whether it did.

        They are read by name into the parameters that require gradients. Where there is none, train as it does: the
        numbers are the same.
        """


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method; its dataclass fields are its hyperparameters, settable as ``name[field=value]``.

    State lives in attached modules, never in the method object. Import torch inside the functions that use it, so
    that planning stays fast.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper, and reference code with commit."""
    composable: ClassVar[bool] = True
    """Whether it can be composed with other methods on one backbone."""
    adapts: ClassVar[str] = "weights"
    """What the method changes: ``weights``, ``attention`` (a key/value prefix) or ``input`` (a soft prompt). A
    composition changes each at most once."""

    resumable: ClassVar[bool] = True
    """Whether training can be resumed from a checkpoint. A checkpoint has parameters, buffers, optimizer, random states
    and what ``fit`` passes to :meth:`Trainer.keep`. On resumption ``fit`` is called again and its finished runs are
    skipped. A class that overrides :meth:`fit`, :meth:`adapt` or :meth:`after_step` must set ``resumable = True``
    itself, if it has no other state between steps; otherwise its cells restart from the beginning."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named requests: name such as ``peml/figure-3`` to options of `mtlbench run`."""
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named protocols: name such as ``peml/strict`` to fields; see :mod:`mtlbench.planning.protocols`."""

    reads_rows: ClassVar[bool] = False
    """Whether layers read whole rows ``[rows, length, hidden]``, beyond a row's task id. Rows then reach them padded;
    otherwise a layer's input may be any tokens of one task, ``[chunks, width, hidden]``."""
    example_settings: ClassVar[Mapping[str, Value]] = {}
    """Settings that fit a backbone with projections 32 to 64 wide, where the defaults do not: `mtlbench check` names
    them when the defaults are refused."""

    learning_rate: float | None = None
    """Peak learning rate; ``None`` takes the protocol's."""

    @property
    def searches(self) -> bool:
        """Whether :meth:`fit` reads the search split (:meth:`Trainer.search_loss`): such a method cannot run under a
        protocol that holds no rows out. A class attribute, or a property where it depends on settings."""
        return False

    @property
    def built_on(self) -> Method | None:
        """The method, with its settings, whose training this one starts from (:meth:`Trainer.inherit`): it must attach
        parameters of the same names and shapes. Its cells run first, and are trained once for all that are built on
        them. The default is none."""
        return None

    @property
    def supports_quantized(self) -> bool:
        """Whether it can be attached to a quantised backbone: it neither trains nor reads frozen weights, and
        multiplies by them only by calling their linear. Otherwise its cells are refused there. A class attribute, or a
        property where it depends on settings. The default is yes."""
        return True

    @property
    def weighting(self) -> str:
        """How the losses of a step weigh where the protocol leaves it to the method: ``rows`` is their mean, ``tasks``
        the mean over the tasks present of each one's mean. A class attribute, or a property."""
        return "rows"

    @property
    def size_field(self) -> str | None:
        """The setting that says how large the method is, such as ``rank``: what ``--match-parameters`` moves. ``None``
        if there is none, and the method is then run as it is. A class attribute, or a property."""
        return None

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """The settings of the method at ``size``, a whole number from 1 on, on the backbone of ``setup``.

        The number of trained parameters must not fall as ``size`` rises. The default is ``size`` for
        :attr:`size_field`. Override it where the size is the inverse or a multiple of a setting, or where several
        settings move together.
        """
        return {} if self.size_field is None else {self.size_field: size}

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether :meth:`auxiliary_loss` is part of a step's loss, so that what layers report is collected: a class
        attribute, or a property where it depends on settings. The default is no."""
        return False

    @property
    def task_routed(self) -> bool:
        """Whether the output of a row depends on its task id: a class attribute, or a property where it depends on
        settings. The default is no."""
        return False

    @property
    def identity_at_start(self) -> bool:
        """Whether the function equals the backbone's before the first step: a class attribute, or a property where it
        depends on settings. The default is yes."""
        return True

    @abstractmethod
    def attach(self, model: nn.Module, setup: Setup) -> None:
        """Add trainable modules in place. Every parameter that requires gradients afterwards is trained and saved.

        Raises:
            RequestError: the settings do not fit this backbone; the cell is skipped with the reason.
        """

    def refuse(self, setup: Setup) -> str | None:
        """The reason why this cell cannot be run, or ``None``. Called before :meth:`attach`."""
        return None

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups with ``params`` and optionally ``lr`` and ``weight_decay``."""
        trainable = [p for p in model.parameters() if p.requires_grad]
        return [{"params": trainable, "lr": learning_rate}]

    def row_losses(self, model: nn.Module, answers: Answers) -> Tensor:
        """The loss of each row ``[rows]`` that :meth:`loss` gets: the mean cross entropy of its answer tokens.

        Override it to add a term per token, such as the distance to a teacher; ``answers.read()`` runs a forward pass.
        A row's loss must depend on that row only. It is also called on the validation split, in evaluation mode, where
        nothing should be added.
        """
        return answers.losses()

    def loss(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        """The scalar to minimise from per-row mean token losses ``[rows]`` and task ids ``[rows]``.

        Tasks are weighted by :attr:`weighting` and the protocol. Override this only for a loss of another form, such
        as learned weights, and add :meth:`penalty`; no protocol can then weigh the tasks.
        """
        penalty = self.penalty(model)
        return row_losses.mean() if penalty is None else row_losses.mean() + penalty

    def owns_loss(self) -> bool:
        """Whether :meth:`loss` is the method's own."""
        return type(self).loss is not Method.loss

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that does not depend on the rows (orthogonality, entropy), or ``None``."""
        return None

    def auxiliary_loss(self, sums: Mapping[str, RowSums], tasks: Tensor, model: nn.Module) -> Tensor:
        """A scalar added to the loss of a step, from what layers reported of their tokens (balance of experts).

        It is defined over all rows of the step, however many passes and processes compute them. It may depend on the
        parameters through ``sums`` only. Steps of several passes compute each forward twice for it.

        Args:
            sums: By name of the layer, sums over the tokens of each row of the step, in the order of ``tasks``; see
                ``nn.Factors.report`` and ``nn.report``. Padding is not counted.
            tasks: Task ids ``[rows]``.
        """
        raise NotImplementedError(f"{type(self).__name__} has has_auxiliary_loss and no auxiliary_loss")

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step and before gradients are cleared (rank budgets, schedules, pruning)."""

    def resumes(self) -> bool:
        """Whether checkpoints contain all state of this method between steps: see :attr:`resumable`."""
        for cls in type(self).__mro__:
            if "resumable" in vars(cls):
                return bool(vars(cls)["resumable"])
            if vars(cls).keys() & {"fit", "adapt", "after_step"}:
                return False
        return False

    def fit(self, model: nn.Module, trainer: Trainer) -> None:
        """Train. The default is one run over the budget; override for stages and bilevel search."""
        trainer.run()

    def adapt(self, model: nn.Module, trainer: Trainer) -> None:
        """Train on tasks that :meth:`fit` did not see, from its final state. Called if a protocol has ``sources``.

        ``trainer`` now has the examples and the budget of the targets; steps for :meth:`after_step` continue from the
        end of the budget of :meth:`fit`. The default is one run on all targets together: shared parameters continue
        from the sources, and those of one task start as attached. Override it to initialise a target from its sources,
        or to freeze shared parameters.
        """
        trainer.run()

    def finish(self, model: nn.Module) -> None:
        """Merge weights, discretise an architecture or collapse modules before evaluation."""

    def switch(self, model: nn.Module, *, on: bool) -> None:
        """Disable modules that change the backbone's function before their first step, and enable them again.

        Called when members of a composition train one after another; a method that starts as the identity does nothing.
        """

    def search_space(self, trial: Any) -> Mapping[str, Value]:
        """What ``mtlbench tune`` searches: settings suggested by an Optuna trial, each under its own name.

        A value may be rounded before it is returned. Empty if there is nothing to tune. The default searches the peak
        learning rate, from 1e-4 to 1e-2.
        """
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)}

    def export(self, model: nn.Module, folder: Path, *, task: int | None = None) -> None:
        """Write a standard peft checkpoint to ``folder``; of a task-routed method, for one task.

        Raises:
            PluginError: when the method has no standard form, or needs a task.
        """
        from mtlbench.errors import PluginError

        raise PluginError(f"Method {self.name!r} cannot be expressed as a standard peft checkpoint.")

    def settings(self) -> dict[str, Value]:
        """All hyperparameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def setting_types(cls, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """The type of every setting by name, as :func:`typing.get_type_hints` gives it: by default, of every field.

        Override it together with :meth:`with_settings` when settings belong to another library and are not fields.

        Args:
            texts: The settings as text by name, not yet parsed: the value of one may decide which others exist.
        """
        hints = typing.get_type_hints(cls)
        return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}

    @classmethod
    def with_settings(cls, settings: Mapping[str, Value]) -> Self:
        """The method with these settings."""
        return cls(**dict[str, Any](settings))
