"""An executor of another package, watched: what it raises or returns wrongly is named with it and its package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mtlbench.api.executor import DevicesPerCell, Executor, Launch, Workers
from mtlbench.api.hooks import PROJECT
from mtlbench.errors import MtlbenchError, PluginError
from mtlbench.plugins import offer_of, raised

T = TypeVar("T")


def guarded(executor: Executor) -> Executor:
    """The executor, watched unless it is one of ours."""
    try:
        offer = offer_of("executors", executor.name)
    except MtlbenchError:
        return executor
    if offer.distribution == PROJECT:
        return executor
    return _Guarded(executor, f"The executor {executor.name!r} of {offer.origin}")


class _Guarded(Executor):
    def __init__(self, inner: Executor, who: str) -> None:
        self._inner, self._who = inner, who

    def check_shared(self, device: str, devices: DevicesPerCell) -> None:
        _asked(self._who, "check_shared", lambda: self._inner.check_shared(device, devices))

    def check(self, device: str) -> None:
        _asked(self._who, "check", lambda: self._inner.check(device))

    def start(self, launch: Launch) -> Workers:
        workers: Any = _asked(self._who, "start", lambda: self._inner.start(launch))
        if not isinstance(workers, Workers):
            raise PluginError(
                f"{self._who}: start returns {workers!r}; it must return an instance of mtlbench.Workers."
            )
        return _GuardedWorkers(workers, self._who)


class _GuardedWorkers(Workers):
    def __init__(self, inner: Workers, who: str) -> None:
        self._inner, self._who = inner, who

    def alive(self) -> int:
        count: Any = _asked(self._who, "alive", self._inner.alive)
        if not isinstance(count, int):
            raise PluginError(f"{self._who}: alive returns {count!r}; it must return the number of running workers.")
        return count

    def stop(self, *, grace_s: float) -> None:
        _asked(self._who, "stop", lambda: self._inner.stop(grace_s=grace_s))


def _asked(who: str, what: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except MtlbenchError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{who} failed in {what}: {raised(error)}.") from error
