"""All that is used of torch, transformers and lm-eval without a promise that it stays: private names, inner modules.

One function for each, so that a release that drops a name is answered in one place; ``tests/test_compat.py`` holds
each and finds uses elsewhere. The libraries are imported when a function is called. lm-eval has two forms here: the
released one (0.4) and that of its branch for 0.5.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask as ConfigurableTask
    from torch import Tensor, nn

# torch


def version_of(tensor: Tensor) -> int:
    """How often ``tensor`` was written to in place (``Tensor._version``).

    Without it nothing tells that a low-rank output computed ahead, or a buffer in a checkpoint, is out of date.
    """
    return int(tensor._version)


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters of a module alone by name, to read and to change (``Module._parameters``).

    ``named_parameters(recurse=False)`` reads the same, at several times the cost for each of hundreds of layers in a
    step. Without it low-rank layers find no factors, and shards and full fine-tuning put no tensors in place.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module alone by name, to read and to change (``Module._buffers``). Without it no sharding."""
    return module._buffers


@functools.cache
def attributes_of_every_module() -> frozenset[str]:
    """Attributes that ``Module.__init__`` makes, of which all but ``training`` are torch's own.

    Were they incomplete, checkpoints would call a new one of torch's an attribute that training forgot to hand over.
    """
    from torch import nn

    return frozenset(vars(nn.Module()))


def multiply_each_(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply tensors in place, in few kernels (``torch._foreach_mul_``). Without it AdaLoRA's mask takes a loop."""
    import torch

    torch._foreach_mul_(list(tensors), list(factors))


def same_storage(one: Any, other: Any) -> bool:
    """Whether two storages are one, also where their memory is freed in between (``UntypedStorage._cdata``).

    Without it a method that swaps a sharded weight for another is not refused.
    """
    return bool(one._cdata == other._cdata)


def begin_sharding(model: nn.Module) -> None:
    """Let FSDP2 find its units before the first forward of the whole model (``FSDPState._lazy_init``).

    Without it an encoder that is called alone takes itself for the whole model.
    """
    from torch.distributed.fsdp import fully_shard

    shard: Any = fully_shard
    shard.state(model)._lazy_init()


def processor_attention() -> tuple[Any, Any]:
    """The processor's attention kernel and its backward, for a counter (``aten._scaled_dot_product_flash_...``).

    torch's own counter does not know them. Without them FLOP on a processor lack those of attention.
    """
    import torch

    aten = torch.ops.aten
    return (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )


def tcp_store(host: str, port: int, *, timeout: timedelta) -> Any:
    """A client of torchrun's store (``torch.distributed.TCPStore``, which is documented and not in ``__all__``)."""
    from torch import distributed

    made: Any = distributed
    return made.TCPStore(host, port, is_master=False, timeout=timeout)


def prefix_store(prefix: str, store: Any) -> Any:
    """A store whose keys start with ``prefix`` (``torch.distributed.PrefixStore``, as :func:`tcp_store`)."""
    from torch import distributed

    made: Any = distributed
    return made.PrefixStore(prefix, store)


# transformers


def attention_of(config: Any) -> str:
    """Name of the attention function that layers look up (``PretrainedConfig._attn_implementation``).

    ``set_attn_implementation`` is the public way to set it and nothing reads it. Without it prefixes do not know which
    kernel they stand in for, and packed rows not which masks it takes.
    """
    return str(config._attn_implementation)


def set_attention(config: Any, name: str) -> None:
    """Make layers use the attention function ``name`` from their next forward on, as :func:`attention_of`.

    ``set_attn_implementation`` checks that the function is one of transformers' own, for each of all configurations.
    Without it prefixes cannot be switched on and off.
    """
    config._attn_implementation = name


def dispatches_attention(stack: object) -> bool:
    """Whether the attention of a stack is looked up by name (``_can_set_attn_implementation``).

    Without it a prefix would be attached to models that never ask for it, and change nothing.
    """
    ask: Any = getattr(type(stack), "_can_set_attn_implementation", None)
    return bool(ask is not None and ask())


def layer_classes(model: object) -> frozenset[str]:
    """Class names of the layers that are not to be split (``_no_split_modules``); empty where the model names none.

    Without it ``--shard`` does not know what to gather at once.
    """
    return frozenset(getattr(model, "_no_split_modules", None) or ())


@functools.cache
def types_that_generate() -> frozenset[str]:
    """Model types that transformers has a class for text generation for, by the source of its automatic classes.

    It is about ``MODEL_FOR_..._MAPPING_NAMES`` in ``transformers.models.auto.modeling_auto``, whose import takes
    seconds. Empty where they are not found; then such a model is refused by the worker instead of the plan.
    """
    source = _source_of("auto/modeling_auto.py")
    known: set[str] = set()
    for name in ("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"):
        table = re.search(rf"^{name}_MAPPING_NAMES\b.*?^\)", source, re.MULTILINE | re.DOTALL)
        known |= set(re.findall(r"\(\s*\"([\w\-]+)\",", table.group())) if table else set()
    return frozenset(known)


@functools.cache
def lacks_sdpa(model_type: str) -> bool:
    """Whether the source of a model type nowhere says ``_supports_sdpa = True``; not where there is no such source.

    Without it the worker refuses ``--attention sdpa`` for such a model, instead of the plan.
    """
    source = _source_of_type(model_type)
    return bool(source) and re.search(r"_supports_sdpa\s*=\s*True", source) is None


def is_type(model_type: str) -> bool:
    """Whether there is the source of a model type; not so for a part of another's, such as ``gemma3_text``.

    Without it a type that generates no text is refused by the worker instead of the plan.
    """
    return bool(_source_of_type(model_type))


def _source_of_type(model_type: str) -> str:
    folder = model_type.replace("-", "_").lower()
    return _source_of(f"{folder}/modeling_{folder}.py") if folder.isidentifier() else ""


def _source_of(path: str) -> str:
    """A file of transformers' models as text, without importing it; empty where there is none."""
    spec = importlib.util.find_spec("transformers")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = Path(folder) / "models" / path
        if found.is_file():
            return found.read_text(encoding="utf-8")
    return ""


def sdpa_class(auto: Any, config: Any) -> bool:
    """Whether the class that ``auto`` takes for ``config`` has torch's attention kernel (``_supports_sdpa``).

    Without it a request for it would fail inside transformers, and ``auto`` could not say why it takes another.
    """
    found: Any = auto._model_mapping[type(config)]
    found = found[0] if isinstance(found, (tuple, list)) else found
    return bool(getattr(found, "_supports_sdpa", False))


def quantizable_linears(model: Any) -> frozenset[str]:
    """Names of the linears that transformers quantises while it loads a model (in ``transformers.quantizers``).

    Without it the forecast of a quantised backbone counts other layers than those that are quantised.
    """
    from torch import nn
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return frozenset(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and should_convert_module(name, kept)
    )


# lm-eval


def __getattr__(name: str) -> Any:
    """``ConfigurableTask``; from 0.5 on an alias in a package ``lm_eval.api.task``, until it goes."""
    if name != "ConfigurableTask":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask


def load_task_yaml(path: Path) -> dict[str, Any]:
    """A task file with all that it includes and the functions it names (``lm_eval.tasks._yaml_loader``).

    lm-eval's public ``TaskManager`` indexes thousands of files first. Without it no task loads.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    loaded: dict[str, Any] = load_yaml(path)
    return loaded


@contextmanager
def without_task_bars() -> Iterator[None]:
    """Inside, lm-eval's tasks show no progress bar (``tqdm`` in ``lm_eval.api.task``; from 0.5 in its ``_task``).

    Without the name bars appear, and nothing else changes.
    """
    module: Any = importlib.import_module("lm_eval.api.task")
    if not hasattr(module, "tqdm"):
        module = getattr(module, "_task", module)
    bar = getattr(module, "tqdm", None)
    if bar is None:
        yield
        return
    module.tqdm = _no_bar
    try:
        yield
    finally:
        module.tqdm = bar


def _no_bar(rows: Any, **_: Any) -> Any:
    return rows


def compile_templates_once() -> None:
    """Compile each prompt template once, where lm-eval 0.4 compiles it again for every row (0.4 ms of each).

    It is about ``lm_eval.utils.env``. From 0.5 on that is gone, and lm-eval keeps compiled templates itself.
    """
    utils: Any = importlib.import_module("lm_eval.utils")
    env = getattr(utils, "env", None)
    if env is not None and not hasattr(env.from_string, "cache_info"):
        env.from_string = functools.cache(env.from_string)


def multiple_input(lm_task: ConfigurableTask) -> bool:
    """Whether the choices of a task are prompts with one continuation, as in WinoGrande.

    ``Task.multiple_input`` in 0.4, ``TaskConfig.multiple_inputs`` from 0.5 on.
    """
    if hasattr(lm_task, "multiple_input"):
        return bool(lm_task.multiple_input)
    return bool(lm_task.config.multiple_inputs)


def label_and_choices(lm_task: ConfigurableTask, doc: dict[str, Any]) -> tuple[Any, list[str]]:
    """What says which choice of a row is right, and the choices.

    Where they are prompts (:func:`multiple_input`), 0.4 gives the label as the text and the prompts as choices, and
    0.5 the label as the target and the prompts as the text.
    """
    if not multiple_input(lm_task):
        return lm_task.doc_to_target(doc), lm_task.doc_to_choice(doc)
    if hasattr(lm_task, "multiple_input"):
        return lm_task.doc_to_text(doc), lm_task.doc_to_choice(doc)
    return lm_task.doc_to_target(doc), lm_task.doc_to_text(doc)


def continuation(lm_task: ConfigurableTask, doc: dict[str, Any]) -> str:
    """What follows every prompt where :func:`multiple_input` holds: the target in 0.4, the only choice in 0.5."""
    if hasattr(lm_task, "multiple_input"):
        return str(lm_task.doc_to_target(doc))
    (only,) = lm_task.doc_to_choice(doc)
    return str(only)
