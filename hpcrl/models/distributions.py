"""Distributions over actions: sampling from given noise, log-probabilities, entropies.

No distribution objects per action: the methods of a `Distribution` are pure functions of the parameters that the layer
of a head gives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcrl.errors import ConfigError
from hpcrl.models.exploration import mix_uniform
from hpcrl.models.masks import FORBIDDEN, forbidden_choices
from hpcrl.models.packing import pack, unpack
from hpcrl.spaces import Space

_LOG_2PI = math.log(2 * math.pi)


class Distribution(ABC):
    """A family of distributions over the actions of one space, stored as [..., *shape].

    Attributes:
        num_outputs: numbers that a layer gives for one action.
        num_log_stds: log standard deviations that one action needs beside them.
        noise_size: uniform numbers that sampling one action takes.
        mask_size: choices that a mask may forbid; 0: takes no masks.
        can_explore: whether `explore` is there.
    """

    num_outputs: int
    num_log_stds: int = 0
    noise_size: int
    mask_size: int = 0
    can_explore: bool = False

    def parameters_of(self, output: Tensor, log_std: Tensor) -> Tensor:
        """Output [..., num_outputs] and log_std [num_log_stds] -> parameters [..., P], P = both sizes together."""
        return output

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Parameters [..., P] and uniform noise float32 [..., noise_size] in (0, 1) -> actions [..., *shape]."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions [..., *shape]."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """Log-probability or log-density of actions [..., *shape], float32 [...]: one number an action."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy in nats, float32 [...]."""

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both, with what they have in common computed once."""
        return self.log_prob(parameters, action), self.entropy(parameters)

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        """See `hpcrl.models.heads.ActionHead.masked`."""
        raise ConfigError(f"a mask needs discrete or multi-discrete actions, got a {type(self).__name__} distribution")

    def explore(self, parameters: Tensor, epsilon: float) -> Tensor:
        """See `hpcrl.models.heads.ActionHead.explore`."""
        raise ConfigError(
            f"random choices need discrete or multi-discrete actions, got a {type(self).__name__} distribution"
        )


class Categorical(Distribution):
    """One of n choices; parameters are logits [..., n], actions int64 [...].

    The choices are put first: sums over few of them are vectorised over all the rest.
    """

    noise_size = 1
    can_explore = True

    def __init__(self, num_choices: int) -> None:
        self.num_outputs = self.mask_size = num_choices

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return _drawn(torch.softmax(parameters.movedim(-1, 0), 0).cumsum(0), noise.squeeze(-1))

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return _chosen(_log_probs(parameters), action)

    def entropy(self, parameters: Tensor) -> Tensor:
        return _entropy(_log_probs(parameters), 0)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = _log_probs(parameters)
        return _chosen(log_probs, action), _entropy(log_probs, 0)

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        forbidden = forbidden_choices(mask.reshape(parameters.shape).movedim(-1, 0), 0)
        return parameters.movedim(-1, 0).masked_fill(forbidden, FORBIDDEN).movedim(0, -1)

    def explore(self, parameters: Tensor, epsilon: float) -> Tensor:
        return mix_uniform(parameters, epsilon)


def _log_probs(logits: Tensor) -> Tensor:
    """[..., n] -> [n, ...]."""
    return torch.log_softmax(logits.movedim(-1, 0), 0)


def _chosen(log_probs: Tensor, action: Tensor) -> Tensor:
    return log_probs.gather(0, action.unsqueeze(0)).squeeze(0)


def _drawn(cumulative: Tensor, noise: Tensor) -> Tensor:
    """Choices int64 [...] by inverse of the cumulative distribution [n, ...], from noise [...]."""
    # The last value may round to a little less than 1, so the noise is scaled by it: a choice of probability 0 is never
    # drawn.
    return (noise * cumulative[-1] >= cumulative[:-1]).sum(0)


def _entropy(log_probs: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(dim)


class _Group(NamedTuple):
    """The k numbers of a multi-discrete action that have n choices each: they are computed together.

    Attributes:
        num_choices: n.
        logits: where the logits of one number after the other lie among the parameters, k * n of them.
        numbers: where they lie in the flattened action, k of them.
    """

    num_choices: int
    logits: slice | Tensor
    numbers: slice | Tensor

    def of(self, choices: Tensor) -> Tensor:
        """Logits or masks of all numbers [P, ...] -> those of the group [k, n, ...]."""
        return choices[self.logits].unflatten(0, (-1, self.num_choices))


def _groups(nvec: Sequence[int]) -> Iterator[_Group]:
    first = list(accumulate(nvec, initial=0))
    for num_choices in sorted(set(nvec)):
        numbers = [number for number, choices in enumerate(nvec) if choices == num_choices]
        logits = [first[number] + choice for number in numbers for choice in range(num_choices)]
        yield _Group(num_choices, _places(logits), _places(numbers))


def _places(ascending: Sequence[int]) -> slice | Tensor:
    """Neighbours as a slice, which gives a view; others as an index int64 [k], which copies."""
    first, end = ascending[0], ascending[-1] + 1
    return slice(first, end) if end - first == len(ascending) else torch.tensor(ascending)


class MultiCategorical(Distribution):
    """Independent numbers, each one of its own choices; actions int64 [..., *shape].

    Parameters are logits [..., sum of nvec], those of one number after the other.
    """

    can_explore = True

    def __init__(self, shape: tuple[int, ...], nvec: Sequence[int]) -> None:
        self._shape = shape
        self._groups = list(_groups(nvec))
        self.num_outputs = self.mask_size = sum(nvec)
        self.noise_size = len(nvec)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        logits, noise = parameters.movedim(-1, 0), noise.movedim(-1, 0)
        drawn = []
        for group in self._groups:
            cumulative = torch.softmax(group.of(logits), 1).cumsum(1)
            drawn.append(_drawn(cumulative.movedim(1, 0), noise[group.numbers]))
        return self._action(drawn)

    def mode(self, parameters: Tensor) -> Tensor:
        logits = parameters.movedim(-1, 0)
        return self._action([group.of(logits).argmax(1) for group in self._groups])

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return self._chosen(self._log_probs(parameters), action)

    def entropy(self, parameters: Tensor) -> Tensor:
        return _total([_entropy(log_probs, (0, 1)) for log_probs in self._log_probs(parameters)])

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        groups = self._log_probs(parameters)
        return self._chosen(groups, action), _total([_entropy(log_probs, (0, 1)) for log_probs in groups])

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        mask = mask.reshape(parameters.shape).movedim(-1, 0)
        forbidden = torch.empty(mask.shape, dtype=torch.bool, device=mask.device)
        for group in self._groups:
            forbidden[group.logits] = forbidden_choices(group.of(mask), 1).flatten(0, 1)
        return parameters.movedim(-1, 0).masked_fill(forbidden, FORBIDDEN).movedim(0, -1)

    def explore(self, parameters: Tensor, epsilon: float) -> Tensor:
        mixed = torch.empty_like(parameters)
        for group in self._groups:
            logits = parameters[..., group.logits].unflatten(-1, (-1, group.num_choices))
            mixed[..., group.logits] = mix_uniform(logits, epsilon).flatten(-2)
        return mixed

    def _log_probs(self, parameters: Tensor) -> list[Tensor]:
        """[k, n, ...] of each group."""
        logits = parameters.movedim(-1, 0)
        return [torch.log_softmax(group.of(logits), 1) for group in self._groups]

    def _chosen(self, groups: Sequence[Tensor], action: Tensor) -> Tensor:
        numbers = _flat(action, self._shape).movedim(-1, 0)
        chosen = [
            log_probs.gather(1, numbers[group.numbers].unsqueeze(1)).sum((0, 1))
            for group, log_probs in zip(self._groups, groups, strict=True)
        ]
        return _total(chosen)

    def _action(self, drawn: Sequence[Tensor]) -> Tensor:
        """Choices int64 [k, ...] of each group -> [..., *shape]."""
        numbers = drawn[0].new_empty(self.noise_size, *drawn[0].shape[1:])
        for group, choices in zip(self._groups, drawn, strict=True):
            numbers[group.numbers] = choices
        return _shaped(numbers.movedim(0, -1), self._shape)


class Bernoulli(Distribution):
    """Independent zeros and ones; parameters are logits of the ones [..., n], actions int8 [..., *shape]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.num_outputs = self.noise_size = math.prod(shape)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return _shaped((noise >= torch.sigmoid(-parameters)).to(torch.int8), self._shape)

    def mode(self, parameters: Tensor) -> Tensor:
        return _shaped((parameters > 0).to(torch.int8), self._shape)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        sign = 2 * _flat(action, self._shape) - 1
        return functional.logsigmoid((sign * parameters).movedim(-1, 0)).sum(0)

    def entropy(self, parameters: Tensor) -> Tensor:
        # H = log(1 + exp(-|l|)) + |l| sigmoid(-|l|): the same for l and -l, and no difference of large numbers.
        size = parameters.movedim(-1, 0).abs()
        return (size * torch.sigmoid(-size) - functional.logsigmoid(size)).sum(0)


class DiagonalGaussian(Distribution):
    """Independent normals; parameters are (mean, log standard deviation) [..., 2n], actions float32 [..., *shape].

    The standard deviation is a free parameter, the same in every state.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.num_outputs = self.num_log_stds = math.prod(shape)
        self.noise_size = 2 * self.num_outputs

    def parameters_of(self, output: Tensor, log_std: Tensor) -> Tensor:
        return torch.cat([output, log_std.expand_as(output)], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        radius, angle = noise.chunk(2, -1)
        # Box and Muller 1958: a normal number from two uniform ones.
        normal = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
        return _shaped(mean + log_std.exp() * normal, self._shape)

    def mode(self, parameters: Tensor) -> Tensor:
        return _shaped(parameters.chunk(2, -1)[0].clone(), self._shape)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        standardised = (_flat(action, self._shape) - mean) * torch.exp(-log_std)
        return (-0.5 * (standardised.square() + _LOG_2PI) - log_std).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        _, log_std = parameters.chunk(2, -1)
        return (0.5 * (1 + _LOG_2PI) + log_std).sum(-1)


class Joint(Distribution):
    """Independent parts of a packed action; actions uint8 [..., nbytes].

    Outputs, parameters, log standard deviations and noise are those of one part after the other.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._names = [name for name, _ in space.leaves]
        self._parts = [make_distribution(leaf) for _, leaf in space.leaves]
        self._outputs = [part.num_outputs for part in self._parts]
        self._log_stds = [part.num_log_stds for part in self._parts]
        self._parameters = [part.num_outputs + part.num_log_stds for part in self._parts]
        self._noise = [part.noise_size for part in self._parts]
        self.num_outputs, self.num_log_stds = sum(self._outputs), sum(self._log_stds)
        self.noise_size = sum(self._noise)

    def parameters_of(self, output: Tensor, log_std: Tensor) -> Tensor:
        pieces = zip(self._parts, output.split(self._outputs, -1), log_std.split(self._log_stds), strict=True)
        return torch.cat([part.parameters_of(*piece) for part, *piece in pieces], -1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        pieces = zip(self._each(parameters), noise.split(self._noise, -1), strict=True)
        return self._action([part.sample(own, piece) for (part, own), piece in pieces])

    def mode(self, parameters: Tensor) -> Tensor:
        return self._action([part.mode(own) for part, own in self._each(parameters)])

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        pieces = zip(self._each(parameters), unpack(self._space, action).values(), strict=True)
        return _total([part.log_prob(own, leaf) for (part, own), leaf in pieces])

    def entropy(self, parameters: Tensor) -> Tensor:
        return _total([part.entropy(own) for part, own in self._each(parameters)])

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        pieces = zip(self._each(parameters), unpack(self._space, action).values(), strict=True)
        log_probs, entropies = zip(*(part.log_prob_and_entropy(own, leaf) for (part, own), leaf in pieces), strict=True)
        return _total(log_probs), _total(entropies)

    def _each(self, parameters: Tensor) -> Iterator[tuple[Distribution, Tensor]]:
        """Each part and its parameters."""
        return zip(self._parts, parameters.split(self._parameters, -1), strict=True)

    def _action(self, parts: Sequence[Tensor]) -> Tensor:
        return pack(self._space, dict(zip(self._names, parts, strict=True)))


def _flat(action: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[..., *shape] -> [..., n]."""
    if len(shape) == 1:
        return action
    return action.reshape((*action.shape[: action.dim() - len(shape)], math.prod(shape)))


def _shaped(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[..., n] -> [..., *shape]."""
    return numbers if len(shape) == 1 else numbers.reshape(numbers.shape[:-1] + shape)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def make_distribution(space: Space) -> Distribution:
    """The distribution over an action space; ConfigError where there is none."""
    if space.kind == "discrete":
        return Categorical(space.num_choices)
    if space.kind == "multi_discrete":
        return MultiCategorical(space.shape, space.nvec)
    if space.kind == "multi_binary":
        return Bernoulli(space.shape)
    if space.kind == "box" and space.dtype == "float32":
        return DiagonalGaussian(space.shape)
    if space.kind == "packed" and space.leaves:
        return Joint(space)
    raise ConfigError(f"no distribution is known for actions of kind {space.kind}, {space.dtype} {list(space.shape)}")
