"""Plugins by name: listed from package metadata, loaded on demand, checked before use."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import pluggy

from mtlbench.api.backbone import PackagedBackbone
from mtlbench.api.balancer import Balancer
from mtlbench.api.executor import Executor
from mtlbench.api.hooks import GROUPS, NOUN_HOOKS, PROJECT, EventHooks, NounHooks
from mtlbench.api.method import Method
from mtlbench.api.report import Ledger, Report
from mtlbench.api.task import TaskSuite
from mtlbench.errors import MtlbenchError, PluginError, RequestError, did_you_mean

_SINGULAR = {
    "methods": "method",
    "tasks": "suite",
    "balancers": "balancer",
    "backbones": "backbone",
    "reports": "report",
    "published": "ledger",
    "executors": "executor",
    "observers": "observer",
}

_LIBRARIES = (PROJECT, "torch", "transformers", "lm_eval", "datasets", "jinja2")


@dataclass(frozen=True)
class Offer:
    """One entry point of one installed distribution."""

    name: str
    module: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """``distribution version``, for messages."""
        return f"{self.distribution} {self.version}"


_FOUND: ContextVar[dict[str, dict[str, tuple[Offer, ...]]] | None] = ContextVar("offers", default=None)
"""Groups that were read inside :func:`offers_read_once`."""


@contextmanager
def offers_read_once() -> Iterator[None]:
    """Read each group once in here, as reading it opens files of every installed distribution.

    Nothing is remembered afterwards: what is installed later is found.
    """
    if _FOUND.get() is not None:
        yield
        return
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def offers(group: str) -> dict[str, tuple[Offer, ...]]:
    """Every offered name of a group (``methods``, ``tasks``, ...), sorted, read from metadata only."""
    if group not in GROUPS:
        raise PluginError(f"There is no plugin group {group!r}. {did_you_mean(group, GROUPS)}")
    found = _FOUND.get()
    if found is None:
        return _offers(group)
    if group not in found:
        found[group] = _offers(group)
    return dict(found[group])


def _offers(group: str) -> dict[str, tuple[Offer, ...]]:
    by_name: dict[str, dict[tuple[str, str], Offer]] = {}
    owners: dict[int, tuple[str, str]] = {}  # cached: reading a distribution's name parses all its metadata
    for entry in metadata.entry_points(group=f"{PROJECT}.{group}"):
        dist = entry.dist
        if id(dist) not in owners:
            owners[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "unknown")
        offer = Offer(entry.name, entry.value, *owners[id(dist)])
        by_name.setdefault(entry.name, {})[(offer.distribution, offer.module)] = offer
    return {name: tuple(by_name[name].values()) for name in sorted(by_name)}


def offer_of(group: str, name: str) -> Offer:
    """The one offer of ``name``.

    Raises:
        RequestError: no distribution offers the name.
        PluginError: two distributions offer it.
    """
    known = offers(group)
    if name not in known:
        raise RequestError(f"Unknown {_SINGULAR[group]} {name!r}. {did_you_mean(name, known)}")
    offering = known[name]
    if len(offering) > 1:
        owners = " and ".join(f"{o.origin} ({o.module})" for o in offering)
        raise PluginError(f"The {_SINGULAR[group]} name {name!r} is offered by {owners}. Uninstall one of them.")
    return offering[0]


def load_method(name: str) -> type[Method]:
    """The method class behind ``name``."""
    offer = offer_of("methods", name)
    method = _noun("methods", offer)
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise _wrong_type(offer, "a subclass of mtlbench.Method", method)
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise PluginError(f"Method {name!r} of {offer.origin} does not implement {missing}.")
    params = getattr(method, "__dataclass_params__", None)
    if params is None or "__dataclass_params__" not in vars(method) or not params.frozen:
        raise PluginError(
            f"Method {name!r} of {offer.origin} must be decorated with @dataclass(frozen=True, kw_only=True)."
        )
    without = [f.name for f in dataclasses.fields(method) if f.init and not _has_default(f)]
    if without:
        raise PluginError(
            f"Method {name!r} of {offer.origin}: its setting{'s' if len(without) > 1 else ''} {', '.join(without)} "
            f"{'have' if len(without) > 1 else 'has'} no default, and a method must work by its name alone. Give each "
            "field one, such as `rank: int = 8`."
        )
    if not isinstance(getattr(method, "source", None), str):
        raise PluginError(f"Method {name!r} of {offer.origin} must state its `source` (paper, reference code).")
    return method


def load_balancer(name: str) -> type[Balancer]:
    """The balancer class behind ``name``."""
    offer = offer_of("balancers", name)
    balancer = _noun("balancers", offer)
    if not (inspect.isclass(balancer) and issubclass(balancer, Balancer)):
        raise _wrong_type(offer, "a subclass of mtlbench.Balancer", balancer)
    params = vars(balancer).get("__dataclass_params__")
    if inspect.isabstract(balancer) or params is None or not params.frozen:
        raise PluginError(
            f"Balancer {name!r} of {offer.origin} must be decorated with @dataclass(frozen=True, kw_only=True) and "
            "implement start."
        )
    without = [f.name for f in dataclasses.fields(balancer) if f.init and not _has_default(f)]
    if without or not isinstance(getattr(balancer, "source", None), str):
        lacks = f"a default of {', '.join(without)}" if without else "its `source` (paper, reference code)"
        raise PluginError(f"Balancer {name!r} of {offer.origin} lacks {lacks}.")
    if balancer.reads not in ("gradients", "losses"):
        raise PluginError(f"Balancer {name!r} of {offer.origin} reads {balancer.reads!r}: gradients or losses.")
    return balancer


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def load_suite(name: str) -> TaskSuite:
    """The suite behind ``name``."""
    return cast(TaskSuite, _instance("tasks", name, TaskSuite))


def load_packaged(name: str) -> PackagedBackbone:
    """The backbone that an installed package carries as ``name``."""
    return cast(PackagedBackbone, _instance("backbones", name, PackagedBackbone))


def carried(kind: Literal["presets", "protocols"], name: str) -> tuple[Mapping[str, Any] | None, set[str]]:
    """The preset or protocol ``name`` of an installed suite or method, and all names that were searched.

    The plugin that the first part of the name names is searched first, then every suite, and where the first part
    names no plugin (``mtl/merge``) every method.
    """
    first = name.partition("/")[0]
    suites, methods = offers("tasks"), offers("methods")
    known: dict[str, Mapping[str, Any]] = {}
    if first in methods:
        known.update(getattr(load_method(first), kind))
    for suite in [first] if first in suites else []:
        known.update(getattr(load_suite(suite), kind))
    for suite in [] if name in known else suites:
        for key, value in getattr(load_suite(suite), kind).items():
            known.setdefault(key, value)
    for method in [] if name in known or first in suites or first in methods else methods:
        with contextlib.suppress(MtlbenchError):  # a broken method of somebody else has nothing to do with this name
            known.update({key: value for key, value in getattr(load_method(method), kind).items() if key == name})
    return known.get(name), set(known)


def load_report(name: str) -> Report:
    """The report behind ``name``."""
    return cast(Report, _instance("reports", name, Report))


def load_ledger(name: str) -> Ledger:
    """The ledger behind ``name``."""
    return cast(Ledger, _instance("published", name, Ledger))


def load_executor(name: str) -> Executor:
    """The executor behind ``name``."""
    return cast(Executor, _instance("executors", name, Executor))


def load_observer(name: str) -> ModuleType:
    """The module of an observer; its event hooks are checked against the specification."""
    offer = offer_of("observers", name)
    module = _module("observers", offer)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(EventHooks)
    _register(manager, module, "observers", offer)
    return module


def load_observers(tell: Callable[[str], None], *, without: Collection[str] = ()) -> dict[str, object]:
    """The modules of all installed observers by name; one that cannot be used is told of and left out."""
    observers: dict[str, object] = {}
    for name in (name for name in offers("observers") if name not in without):
        try:
            observers[name] = load_observer(name)
        except MtlbenchError as error:
            tell(f"Left out: {error}")
    return observers


def raised(error: BaseException) -> str:
    """An exception in one line, with the file and line of the last step outside of mtlbench and the libraries."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
    if isinstance(error, SystemExit):
        text = f"SystemExit: sys.exit({error.code!r}) was called"
    foreign = [
        f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _LIBRARIES
    ]
    return f"{text} ({foreign[-1]})" if foreign else text


def _instance(group: str, name: str, kind: type[Any]) -> Any:
    offer = offer_of(group, name)
    noun = _noun(group, offer)
    if not isinstance(noun, kind):
        raise _wrong_type(offer, f"an instance of mtlbench.{kind.__name__}", noun)
    return noun


def _module(group: str, offer: Offer) -> ModuleType:
    try:
        return importlib.import_module(offer.module)
    except MtlbenchError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise PluginError(
            f"The {_SINGULAR[group]} {offer.name!r} of {offer.origin} cannot be imported ({offer.module}): "
            f"{type(error).__name__}: {error}. Update or uninstall {offer.distribution}; nothing else is affected."
        ) from error


def _register(manager: pluggy.PluginManager, module: ModuleType, group: str, offer: Offer) -> None:
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"The {_SINGULAR[group]} {offer.name!r} of {offer.origin} does not fit a hook: {error}"
        ) from error


def _noun(group: str, offer: Offer) -> Any:
    module = _module(group, offer)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(NounHooks)
    _register(manager, module, group, offer)
    hook = NOUN_HOOKS[group]
    try:
        answers = getattr(manager.hook, hook)()
        single = [answer for answer in answers if not isinstance(answer, Iterable) or inspect.isclass(answer)]
        nouns = [] if single else [noun for answer in answers for noun in answer]
    except Exception as error:
        raise PluginError(
            f"{hook}() of {offer.origin} ({offer.module}) failed: {type(error).__name__}: {error}."
        ) from error
    if single:
        raise PluginError(
            f"{hook}() of {offer.origin} ({offer.module}) returns {single[0]!r}: it must return a list, such as "
            f"[{getattr(single[0], '__name__', type(single[0]).__name__)}]."
        )
    named = [noun for noun in nouns if getattr(noun, "name", None) == offer.name]
    if len(named) != 1:
        names = ", ".join(sorted(repr(getattr(n, "name", n)) for n in nouns)) or "nothing"
        raise PluginError(
            f"{offer.origin} offers the {_SINGULAR[group]} {offer.name!r} in {offer.module}, "
            f"but {hook}() there returns {names}."
        )
    return named[0]


def _wrong_type(offer: Offer, wanted: str, got: object) -> PluginError:
    return PluginError(f"{offer.name!r} of {offer.origin} must be {wanted}, got {got!r}.")
