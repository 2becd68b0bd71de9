"""Any tuner of the installed peft as a method: ``vera``, ``ia3``, or ``peft[type=VERA,r=8]``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from mtlbench import Method, Setup, Value, hookimpl, nn
from mtlbench.errors import RequestError
from mtlbench_methods.peft_catalog import EXAMPLES, KEYS_AND_VALUES, OWN_TARGETS, PAPERS, QUANTIZED, SIZES, VALUES
from mtlbench_methods.peft_options import (
    check_options,
    make_config,
    option_types,
    sentence,
    starts_at_backbone,
    why_hidden,
)
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wrapped:
    """peft's wrapper of the model, kept with the model: as a module of it, the model would hold itself."""

    model: Any


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """A tuner of peft, attached by ``peft.get_peft_model`` with peft's own defaults but for the projections.

    Settings are the fields of the tuner's configuration; asking for one loads peft. Random parts, trained or frozen,
    depend on the seed alone; a seed among the settings wins. Nothing is merged afterwards: peft merges in place, and
    the backbone's weights are shared between cells.
    """

    name: ClassVar[str] = "peft"
    source: ClassVar[str] = "huggingface/peft 0.21.2: peft.tuners"

    type: str = "LORA"
    """peft's name of the tuner, such as ``VERA``; `mtlbench list methods` shows what is installed."""
    target: str = "default"
    """``all``, ``attention``, or last parts of names joined by ``+``, such as ``q_proj+v_proj``. ``default`` is all
    projections, and for tuners that are about certain ones those: keys, values and the feed-forward output for IA3,
    values for BEFT, as peft lists them by architecture; the normalisation layers for LN_TUNING, which takes no other.
    """
    options: tuple[tuple[str, Value], ...] = ()
    """Fields of the tuner's configuration, by name."""

    def __post_init__(self) -> None:
        words = self.target.split("+")
        allowed = "default, all, attention, or last parts of projection names joined by '+', such as q_proj+v_proj"
        check(self, "target", holds=all(word.isidentifier() for word in words), allowed=allowed)
        check_options(self.type, dict(self.options), label=self._label)
        if self.type == "LN_TUNING":
            check(self, "target", holds=self.target == "default", allowed="default: it trains normalisation layers")

    @property
    def size_field(self) -> str | None:
        return SIZES.get(self.type)

    @property
    def identity_at_start(self) -> bool:
        return starts_at_backbone(self.type, dict(self.options))

    @property
    def supports_quantized(self) -> bool:
        reads = any(name == "use_dora" or name.startswith("init_") for name, value in self.options if value is not True)
        return self.type in QUANTIZED and not reads

    @classmethod
    def setting_types(cls, words: Mapping[str, str]) -> Mapping[str, Any]:
        own = dict(super().setting_types(words))
        del own["options"]
        kind = words.get("type", cls.type) if "type" in own else cls.type
        known = {**own, **option_types(kind)}
        for word in words:
            reason = None if word in known else why_hidden(kind, word)
            if reason is not None:
                raise RequestError(f"Method {cls.name!r} takes no setting {word!r}, though peft has it: {reason}.")
        return known

    @classmethod
    def with_settings(cls, settings: Mapping[str, Value]) -> Self:
        own = {f.name for f in fields(cls)}
        options = tuple(sorted((name, value) for name, value in settings.items() if name not in own))
        return cls(**{name: cast(Any, value) for name, value in settings.items() if name in own}, options=options)

    def settings(self) -> dict[str, Value]:
        own = super().settings()
        del own["options"]
        return {**own, **dict(self.options)}

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch
        from peft import get_peft_model

        if self.type == "OSF" and next(model.parameters()).dtype != torch.float32:
            raise RequestError(
                "peft loses the gradient projection that makes OSF what it is when it widens 16-bit weights: --dtype "
                "float32 keeps it."
            )
        if any(name.startswith("init_lora") for name, _ in self.options):
            _own_weights(model, setup.target_modules)
        config = make_config(
            self.type,
            dict(self.options),
            label=self._label,
            seed=setup.seed,
            task_type="SEQ_2_SEQ_LM" if setup.architecture == "seq2seq" else "CAUSAL_LM",
            **self._targets(model, setup),
        )
        device = next(model.parameters()).device
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always")
            torch.manual_seed(setup.seed)
            try:
                wrapped = get_peft_model(model, config)
            except (ValueError, NotImplementedError, AssertionError) as error:
                raise RequestError(f"{self._label} does not fit {type(model).__name__}: {sentence(error)}") from error
        self._listen({str(warning.message) for warning in told})
        if not any(p.requires_grad for p in model.parameters()):
            raise RequestError(f"{self._label} leaves nothing to train.")
        _train_in_float32(model)
        nn.attach_state(model, Wrapped(wrapped))

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """As peft saves it."""
        nn.get_state(model, Wrapped).model.save_pretrained(folder, save_embedding_layers=False)

    def _targets(self, model: torch.nn.Module, setup: Setup) -> dict[str, list[str]]:

        if self.type == "LN_TUNING":
            norms = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
            return {"target_modules": norms}
        if self.target == "default" and self.type in OWN_TARGETS:
            return {} if _known_to_peft(model, self.type) else self._by_role(model, setup)
        names = nn.select_linears(setup.target_modules, "all" if self.target == "default" else self.target)
        if self.type != "IA3":
            return {"target_modules": list(names)}
        # IA3 scales what a projection gives; of a feed-forward block, the inner activations: what the last one reads.
        attention = set(nn.select_linears(setup.target_modules, "attention"))
        narrowing = [n for n in names if n not in attention and setup.shapes[n][0] < setup.shapes[n][1]]
        return {"target_modules": list(names), "feedforward_modules": narrowing}

    def _by_role(self, model: torch.nn.Module, setup: Setup) -> dict[str, list[str]]:
        """What the tuner's paper changes, of a type that peft has no list for."""
        roles = KEYS_AND_VALUES if self.type == "IA3" else VALUES
        names = [name for name in setup.target_modules if name.rpartition(".")[2] in roles]
        if not names:
            raise RequestError(
                f"{self._label} does not fit {type(model).__name__}: it changes {'keys and ' * (self.type == 'IA3')}"
                f"values, and no projection is known to make them. Choose projections with target."
            )
        if self.type != "IA3":
            return {"target_modules": names}
        ends = [name for name in setup.target_modules if nn.ends_block(name) == 1]
        return {"target_modules": [*names, *ends], "feedforward_modules": ends}

    def _listen(self, warned: set[str]) -> None:
        """Log what peft warned of, and refuse values that it changed."""
        for message in sorted(warned):
            if "djusted" in message:
                raise RequestError(f"{self._label} does not fit the backbone's widths: {sentence(message)}")
            logger.info("%s: %s", self._label, message)

    @property
    def _label(self) -> str:
        inner = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in self.options]
        words = [f"type={self.type}", *inner] if self.name == "peft" else inner
        return f"{self.name}[{','.join(words)}]" if words else self.name


def _known_to_peft(model: Any, kind: str) -> bool:
    """Whether peft lists the projections of the tuner for this type, and the backbone has them."""
    from peft.utils import constants

    lists: Any = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_TARGET_MODULES_MAPPING")
    wanted = lists.get(model.config.model_type, [])
    return bool(wanted) and all(any(f".{name}".endswith(f".{w}") for name, _ in model.named_modules()) for w in wanted)


def _own_weights(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Give the named linears weights of their own, for starts that move part of a weight into the adapter in place."""
    for name in names:
        weight = model.get_submodule(name).get_parameter("weight")
        weight.data = weight.data.clone()


def _train_in_float32(model: torch.nn.Module) -> None:
    """Hold every trained parameter in float32. peft does but for normalisation layers, whose output keeps its dtype."""
    import torch

    for module in model.modules():
        narrow = [p for p in module.parameters(recurse=False) if p.requires_grad and p.dtype != torch.float32]
        for p in narrow:
            p.data = p.data.float()
        if narrow:
            module.register_forward_hook(_as_the_input)


def _as_the_input(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(args[0].dtype)


@cache
def _named(kind: str, paper: str) -> type[Peft]:
    """The method of one tuner, under its name in lower case."""
    name = kind.lower()
    members = {
        "__module__": __name__,
        "__doc__": f"peft's {kind} with peft's defaults.",
        "__annotations__": {"type": "str"},
        "type": field(default=kind, init=False),
        "name": name,
        "example_settings": EXAMPLES.get(kind, {}),
        "source": f"{paper}; huggingface/peft 0.21.2: peft.tuners.{name}",
    }
    return dataclass(frozen=True, kw_only=True)(type(kind.title().replace("_", ""), (Peft,), members))


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Peft, *(_named(kind, paper) for kind, paper in PAPERS.items())]
