"""Encoders: what is seen of observations, through layers, to features or straight to heads."""

from __future__ import annotations

import functools
import importlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcrl.config import TrainConfig
from hpcrl.config.nearest import did_you_mean
from hpcrl.errors import ConfigError
from hpcrl.models.first_weights import FirstWeights
from hpcrl.models.fused import Folded, Layer, fold, perceptron
from hpcrl.models.images import ImageEncoder, ImpalaDeep, ImpalaShallow, NatureCNN
from hpcrl.models.inputs import Inputs, Seen

_IMAGE_ENCODERS: dict[str, Any] = {"nature": NatureCNN, "impala": ImpalaShallow, "impala-deep": ImpalaDeep}


class Encoder(nn.Module, ABC):
    """Maps what is seen to features.

    Attributes:
        num_features: F.
        first_weights: of its layers, and of the heads behind them.
    """

    num_features: int
    first_weights: FirstWeights = "orthogonal"

    @abstractmethod
    def features(self, seen: Seen) -> Tensor:
        """What is seen of N observations -> features float32 [N, F]."""

    def fold_features(self) -> Callable[[Seen], Tensor]:
        """`features` prepared for many calls with the weights of now, under `torch.inference_mode`."""
        return self.features

    def forward(self, seen: Seen, *heads: nn.Linear) -> tuple[Tensor, ...]:
        """What is seen of N observations -> what each head makes of the features, float32 [N, out_features]."""
        features = self.features(seen)
        return tuple(functional.linear(features, head.weight, head.bias) for head in heads)


class MLP(Encoder):
    """Fully connected layers over rows of numbers, an activation behind each."""

    def __init__(self, num_inputs: int, hidden_sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [num_inputs, *hidden_sizes]
        linears = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(linears)
        # Kept: for a few environments a module's search for its parameters takes as long as a product.
        self._hidden = [Layer(linear.weight, linear.bias) for linear in linears]
        self._activation = activation
        self.num_features = widths[-1]

    def features(self, seen: Seen) -> Tensor:
        if not self._hidden:
            return seen.rows
        columns = perceptron(seen.rows, self._hidden[:-1], self._hidden[-1], self._activation)
        return torch.tanh(columns.t()) if self._activation == "tanh" else torch.relu(columns.t())

    def forward(self, seen: Seen, *heads: nn.Linear) -> tuple[Tensor, ...]:
        """As `Encoder.forward`. The heads share one product, and lie in memory column after column."""
        columns = perceptron(seen.rows, self._hidden, _joined(heads), self._activation)
        pieces = columns.split([head.out_features for head in heads]) if len(heads) > 1 else (columns,)
        return tuple(piece.t() for piece in pieces)

    def fold(self, head: nn.Linear) -> Folded:
        """The layers and one head, prepared for many calls with the weights of now; maps rows float32 [N, in]."""
        return fold(self._hidden, _joined([head]), self._activation)


class MixedEncoder(Encoder):
    """A convolutional network for each image, beside fully connected layers for all the rest."""

    def __init__(self, networks: Sequence[ImageEncoder], vectors: MLP | None) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)
        self.vectors = vectors
        self.num_features = sum(network.num_features for network in networks)
        self.num_features += 0 if vectors is None else vectors.num_features
        self.first_weights = networks[0].first_weights

    def features(self, seen: Seen) -> Tensor:
        return self._joined(self.networks, seen)

    def fold_features(self) -> Callable[[Seen], Tensor]:
        return functools.partial(self._joined, [network.fold() for network in self.networks])

    def _joined(self, networks: Iterable[Callable[[Tensor], Tensor]], seen: Seen) -> Tensor:
        parts = [network(image) for network, image in zip(networks, seen.images, strict=True)]
        if self.vectors is not None:
            parts.append(self.vectors.features(seen))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class OwnEncoder(Encoder):
    """A user's own module: `module(rows, *images) -> features float32 [N, module.num_features]`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.num_features = _checked_features(module, name)

    def features(self, seen: Seen) -> Tensor:
        return self.module(seen.rows, *seen.images)


def make_encoder(inputs: Inputs, config: TrainConfig) -> Encoder:
    """The encoder that `config.model` names, for what `inputs` gives.

    Raises:
        ConfigError: an unknown model, or one that doesn't fit the observations.
    """
    name = config.model
    if ":" in name:
        return _own_encoder(inputs, config)
    if name == "auto":
        name = "nature" if inputs.images else "mlp"
    if name != "mlp" and name not in _IMAGE_ENCODERS:
        known = ["auto", "mlp", *_IMAGE_ENCODERS]
        raise ConfigError(
            f"--model must be one of {', '.join(known)}, or package.module:Class, got {config.model!r}"
            f"{did_you_mean(config.model, known)}"
        )
    if (name == "mlp") == bool(inputs.images):
        what = "images" if inputs.images else "no image"
        raise ConfigError(f"--model {name} doesn't fit observations with {what} in them")
    vectors = MLP(inputs.num_inputs, config.hidden_sizes, config.activation) if inputs.num_inputs else None
    if name == "mlp":
        assert vectors is not None, "an observation without images has numbers"
        return vectors
    make = _IMAGE_ENCODERS[name]
    return MixedEncoder([make(space.shape, precision=config.precision) for space in inputs.images], vectors)


def _own_encoder(inputs: Inputs, config: TrainConfig) -> OwnEncoder:
    module, _, name = config.model.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--model {config.model} can't be imported: {error}") from error
    # Its first weights are drawn by torch's global generator, which must not depend on what came before.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        made = cls(inputs.num_inputs, tuple(space.shape for space in inputs.images))
    return OwnEncoder(made, config.model)


def _checked_features(module: nn.Module, name: str) -> int:
    if not isinstance(module, nn.Module) or not isinstance(getattr(module, "num_features", None), int):
        raise ConfigError(f"--model {name} must make a torch module with a whole number num_features")
    return module.num_features  # type: ignore[return-value]


def _joined(heads: Sequence[nn.Linear]) -> Layer:
    if len(heads) == 1:
        return Layer(heads[0].weight, heads[0].bias)
    return Layer(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads]))
