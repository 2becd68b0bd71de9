"""From the options of a command to typed requests: presets opened, numbers read, defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.executor import DevicesPerCell
from mtlbench.backbones.names import check_model, config_of, is_embedded
from mtlbench.backbones.quantization import label_of
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.presets import Preset, open_preset
from mtlbench.planning.settings import split_methods
from mtlbench.planning.sweeps import Sweeps, requests_of, sweeps_of
from mtlbench.planning.weighting import read_balance, unbalanced
from mtlbench.plugins import offers

UNTRAINED = "base"
"""The method that trains nothing: the backbone as it is, against which every row is read."""

_SEPARATOR = re.compile(r",(?![^\[\]]*\])")
"""A comma that is not inside brackets."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one command asks for, defaults filled in."""

    methods: str
    tasks: str
    model: str = "demo"
    data: str | None = None
    """``demo``, ``hub`` or a folder; ``None`` takes the demo for a demo backbone and the hub for any other."""
    seeds: tuple[int, ...] = (0,)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~mtlbench.api.cell.Protocol` given explicitly; ``name`` is a named protocol to start from."""

    def to_json(self) -> dict[str, Any]:
        """The request as a JSON object, for the run folder."""
        return {
            "methods": self.methods,
            "tasks": self.tasks,
            "model": self.model,
            "data": self.data_name,
            "seeds": list(self.seeds),
            "protocol": dict(self.protocol),
        }

    @property
    def data_name(self) -> str:
        """Where rows come from, resolved; a folder as an absolute path."""
        name = self.data or ("demo" if is_embedded(self.model) else "hub")
        return name if name in ("demo", "hub") else str(Path(name).resolve())


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests of one command: one, or those of a preset."""

    parts: tuple[Request, ...]
    notes: tuple[str, ...]
    """What the user of the preset should know."""
    sweeps: Sweeps = field(default_factory=dict)
    """Options with several values: there is a part for each combination."""


def read_requests(options: Mapping[str, Any]) -> Requests:
    """The requests that options of the command line make; ``None`` is an option that was not given.

    Raises:
        RequestError: there is no such preset, an option is missing or the seeds cannot be read.
    """
    given = {name: value for name, value in options.items() if name != "preset" and value is not None}
    name = options.get("preset")
    opened = open_preset(name, given) if name else Preset(parts=(given,))
    sweeps = sweeps_of(given)
    parts = [_request(one) for part in opened.parts for one in requests_of(part, sweeps)]
    for model in sweeps.get("model", ()):
        check_model(model)
    data = sorted({part.data_name for part in parts}) if "model" in sweeps else []
    if len(data) > 1:
        raise RequestError(
            f"--model {given['model']}: by default these have different data ({', '.join(data)}), and a sweep leaves "
            "everything else equal. Name one with --data."
        )
    return Requests(parts=tuple(parts), notes=opened.notes, sweeps=sweeps)


def with_base(requests: Requests) -> Requests:
    """The untrained backbone as a row of every request, for commands that make a table; once where it is named.

    Beside settings that come from a search it is a request of its own, as nothing of it was searched.
    """
    if UNTRAINED not in offers("methods"):
        return requests
    return replace(requests, parts=tuple(part for one in requests.parts for part in _with_base(one)))


def _with_base(request: Request) -> Iterator[Request]:
    if any(name == UNTRAINED for name, _ in split_methods(request.methods)):
        yield request
    elif "tuning" in request.protocol:
        rest = {name: value for name, value in request.protocol.items() if name != "tuning"}
        yield from (request, replace(request, methods=UNTRAINED, protocol=rest))
    else:
        yield replace(request, methods=f"{UNTRAINED},{request.methods}")


def _request(options: Mapping[str, Any]) -> Request:
    protocol = dict(options)
    for needed in ("methods", "tasks"):
        if needed not in protocol:
            raise RequestError(f"--{needed} is missing. Example: mtlbench run --methods peml,mtl_lora --tasks glue")
    named = {name: protocol.pop(name) for name in ("methods", "tasks", "model", "data") if name in protocol}
    seeds = _seeds(str(protocol.pop("seeds", "0")))
    return Request(**named, seeds=seeds, protocol=protocol)


_MOST_SEEDS = 10_000
"""Seeds of a range: more are a slip of the keyboard."""


def _seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"``, ``"0-4"`` or ``"0-2,7"``; both ends of a range count."""
    seeds: tuple[int, ...] = ()
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            numbers = range(int(first), int(last) + 1) if dash and first else (int(part),)
            if not 0 < len(numbers) <= _MOST_SEEDS:
                raise ValueError
            seeds = (*seeds, *numbers)
    except ValueError:
        raise RequestError(
            f"--seeds {text!r} cannot be read. Write whole numbers with commas, such as 0,1,2, or ranges such as 0-4."
        ) from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise RequestError(f"--seeds {text!r}: seeds must be different and not negative.")
    return seeds


def read_devices(text: str, *, shard: bool = False, workers: int = 1) -> DevicesPerCell:
    """``"2"``, ``"full=4"`` or ``"1,full=4"`` as the devices of each cell, each device with so many ``workers``.

    Raises:
        RequestError: the text holds no numbers of devices.
    """
    usual, of = 1, dict[str, int]()
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        if not number.isdigit() or int(number) < 1 or (equals and not name):
            raise RequestError(
                f"--devices-per-cell {text!r} cannot be read at {part!r}. Write a number, or a number for each "
                "method that needs another one: 1,full=4."
            )
        if name:
            of[name.strip()] = int(number)
        else:
            usual = int(number)
    return DevicesPerCell(usual=usual, of=of, shard=shard, workers=workers)


def check_devices(devices: DevicesPerCell, cells: Iterable[Cell]) -> None:
    """Refuse a number for a method that no cell has, sharding where no cell has several devices, and several devices
    for a cell whose gradients are balanced.

    Raises:
        RequestError: saying what is wrong.
    """
    cells = list(cells)
    methods = {cell.method for cell in cells}
    if devices.shard and all(devices(cell) == 1 for cell in cells):
        raise RequestError(
            "--shard cuts a backbone for the devices of a cell, and every cell here has one. Give them more: "
            "--devices-per-cell 2."
        )
    if devices.workers > 1 and (wide := next((cell for cell in cells if devices(cell) > 1), None)) is not None:
        raise RequestError(
            f"--workers-per-device {devices.workers} lets cells share a GPU, and {wide.method} gets {devices(wide)} of "
            "its own by --devices-per-cell. Run it by itself, or leave one of both out."
        )
    for cell in cells if devices.shard else ():
        if (label := label_of(cell.protocol.quantize, config_of(cell.model))) is not None:
            raise RequestError(
                f"--shard cuts weights in full precision, and those of {cell.model!r} are quantised ({label}). Leave "
                "one of both out."
            )
    for cell in cells:
        balancer = read_balance(cell.protocol.balance)
        if balancer is not None and balancer.reads == "gradients" and devices(cell) > 1:
            raise RequestError(unbalanced(cell.protocol.balance))
    for name in devices.of:
        if name not in methods:
            raise RequestError(f"--devices-per-cell names {name!r}, no method here. {did_you_mean(name, methods)}")


KEY_LETTERS = 6
"""Fewest digits that name a cell by the start of its key."""


def cells_named(cells: Iterable[Cell], text: str) -> tuple[Cell, ...]:
    """The cells of methods, of variants (``lora[rank=4]``) or with keys that begin so; names are joined by commas.

    Raises:
        RequestError: a name is that of no cell.
    """
    cells, found = list(cells), dict[str, Cell]()
    for name in filter(None, (part.strip() for part in _SEPARATOR.split(text))):
        is_key = len(name) >= KEY_LETTERS and not set(name) - set("0123456789abcdef")
        named = [c for c in cells if name in (c.method, c.variant) or (is_key and c.key.startswith(name))]
        if not named:
            known = {cell.method for cell in cells} | {cell.variant for cell in cells}
            raise RequestError(
                f"No cell is of {name!r}, nor has it for the start of its key. {did_you_mean(name, known)}"
            )
        found.update((cell.key, cell) for cell in named)
    if not found:
        raise RequestError("No cell is named. Name methods, variants such as 'lora[rank=4]', or keys of cells.")
    return tuple(found.values())
