"""What training costs, as numbers that one machine measures and another one reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcrl.config import TrainConfig, to_json
from hpcrl.errors import ConfigError

_FORMAT = 1


@dataclass(frozen=True)
class Line:
    """A fixed part and one for each unit: seconds or bytes."""

    fixed: float
    each: float

    def __call__(self, count: float) -> float:
        """For so many units."""
        return self.fixed + self.each * count


@dataclass(frozen=True)
class Link:
    """A kind of connection.

    Attributes:
        latency_s: of an empty message, one way.
        bytes_per_s: of a large one.
    """

    latency_s: float
    bytes_per_s: float

    def __call__(self, nbytes: float) -> float:
        """Seconds of a message, one way."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class Costs:
    """What the parts of training take. A column is one environment, a row one step of it; all are of one core but the
    gradient, which is of the cores of a learner.

    Attributes:
        algorithm, env: that they were measured for.
        model: options of the network and the loss that decide what a gradient costs.
        unroll_length: T of the unrolls.
        step: seconds of one step, by columns.
        step_sd_s: standard deviation of the step of one column, those of a step and of several being independent.
        inference: seconds of the actions for one step, by columns.
        unroll: seconds of what comes once an unroll, by columns.
        gradient: seconds of loss and backward, by rows.
        apply_s: of the clip and the optimizer's step.
        unroll_bytes: by rows.
        weights_bytes: of the flat vector.
        copy_bytes_per_s: within memory.
        nap_s: longest sleep of a polite wait as it really is.
        node, net: connections of two ranks of a node, and of two nodes.
        links_from: where the connections' numbers come from.
        measured_on: name of the machine.
    """

    algorithm: str
    env: str
    model: dict[str, Any]
    unroll_length: int
    step: Line
    step_sd_s: float
    inference: Line
    unroll: Line
    gradient: Line
    apply_s: float
    unroll_bytes: Line
    weights_bytes: int
    copy_bytes_per_s: float
    nap_s: float
    node: Link
    net: Link
    links_from: str
    measured_on: str

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"costs_format": _FORMAT, **dataclasses.asdict(self)}

    def require_fit(self, config: TrainConfig, source: object) -> None:
        """ConfigError where they were measured for something else than `config`."""
        named = {"algorithm": config.algorithm, "--env": config.env, **model_options(config)}
        mine = {"algorithm": self.algorithm, "--env": self.env, **self.model}
        for name, wanted in named.items():
            if mine.get(name) != wanted:
                raise ConfigError(f"{source} was measured with {name} {mine.get(name)}, expected {wanted}")


def model_options(config: TrainConfig) -> dict[str, Any]:
    """What decides how much an environment, the network and its loss cost, by option."""
    chosen = [
        field
        for field in dataclasses.fields(config)
        if field.metadata["group"] in ("model", "atari") or field.name in _DECISIVE
    ]
    values = to_json(config)
    return {f"--{field.name.replace('_', '-')}": values[field.name] for field in chosen}


_DECISIVE = ("vector", "isolated", "frame_stack", "optimizer", "learner_cores")


def is_costs(data: object) -> bool:
    """Whether JSON data are costs."""
    return isinstance(data, dict) and "costs_format" in data


def costs_from_json(data: Mapping[str, Any], source: object) -> Costs:
    """The costs that `to_json` made; ConfigError for anything else.

    Args:
        source: named in the message.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(Costs)}
    if data.get("costs_format") != _FORMAT or set(data) != {*fields, "costs_format"}:
        raise ConfigError(f"{source} holds no costs of format {_FORMAT}, as hpcrl plan --save writes them")
    return Costs(**{name: _decode(name, kind, data[name], source) for name, kind in fields.items()})


def _decode(name: str, kind: str, value: Any, source: object) -> Any:
    if kind in _PARTS and isinstance(value, dict):
        cls = _PARTS[kind]
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(value) == sorted(names):
            least = 0.0 if cls is Line else -1.0
            numbers = [_number(f"{name}.{each}", value[each], source, least) for each in names]
            if cls is Line or numbers[1] > 0:
                return cls(*numbers)
    elif kind in _PLAIN and isinstance(value, _PLAIN[kind]) and value is not True and value != 0:
        return value
    elif kind == "float":
        return _number(name, value, source, 0.0)
    raise ConfigError(f"{source} has an unexpected {name}: {json.dumps(value)}")


_PLAIN: dict[str, type] = {"str": str, "int": int, "dict[str, Any]": dict}
_PARTS: dict[str, type[Line] | type[Link]] = {"Line": Line, "Link": Link}


def _number(name: str, value: Any, source: object, least: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least:
        raise ConfigError(f"{source} has an unexpected {name}: {json.dumps(value)}")
    return float(value)


def read_json(path: Path) -> Any:
    """JSON data of a file; ConfigError where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error


def fit_line(counts: Sequence[float], values: Sequence[float]) -> Line:
    """The line of the least relative errors, neither part below 0.

    Args:
        counts, values: of the points; one point is proportional.
    """
    x, y = np.asarray(counts, float), np.maximum(np.asarray(values, float), 1e-12)
    if len(set(counts)) > 1:
        design = np.stack([1 / y, x / y], 1)
        fixed, each = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0].tolist()
        if fixed >= 0 and each >= 0:
            return Line(fixed, each)
        if each < 0:
            return Line(float(np.mean(y)), 0.0)
    return Line(0.0, float(np.mean(y / np.maximum(x, 1e-12))))
