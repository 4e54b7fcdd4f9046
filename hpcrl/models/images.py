"""Encoders of images: convolutions and one fully connected layer, arranged for the time they take on a CPU.

On another device they are computed layer by layer, all images at once, channels last.

Few images at a time go through all convolutions, so that what one writes is still in the cache when the next one reads
it. All is computed channels last, and where a view can do that the stride of columns becomes channels. Microseconds an
image uint8 [4, 84, 84] on one thread of a processor with AVX-512 and bfloat16, torch's layers, channels last, under
`torch.autocast` for bfloat16 -> these (acting: of `ImageEncoder.fold`):

| | acting, 8 images | acting, 32 images | learning, 320 images |
| --- | --- | --- | --- |
| NatureCNN, float32 | 206 -> 145 | 166 -> 125 | 397 -> 335 |
| NatureCNN, bfloat16 | 151 -> 85 | 108 -> 71 | 235 -> 225 |
| ImpalaShallow, float32 | 105 -> 76 | 77 -> 49 | 168 -> 137 |
| ImpalaShallow, bfloat16 | 84 -> 52 | 53 -> 31 | 122 -> 90 |
| ImpalaDeep, float32 | 936 -> 815 | 842 -> 758 | 2482 -> 2389 |
| ImpalaDeep, bfloat16 | 636 -> 550 | 537 -> 432 | 1417 -> 1491 |
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hpcrl.errors import ConfigError, ShapeError
from hpcrl.models.convolutions import Convolution, arrange, connect, in_blocks, laid_out, plain, pooled
from hpcrl.models.first_weights import FirstWeights
from hpcrl.models.host import on_host
from hpcrl.spaces import Space

Precision = Literal["float32", "bfloat16"]

_SMALLEST_SIDE = 16
_MOST_CHANNELS_LAST = 4
_WHITE = 255


class ImageLayout(NamedTuple):
    """What the axes of an image are.

    Attributes:
        channels, height, width: 1 channel where an image has two axes.
        channels_last: whether the numbers of one pixel lie side by side.
    """

    channels: int
    height: int
    width: int
    channels_last: bool


def image_layout(shape: Sequence[int]) -> ImageLayout:
    """The layout of images [H, W], [C, H, W] or [H, W, C].

    Channels are last where the last axis is at most 4 and the first is larger than the last, else first.

    Raises:
        ShapeError: `shape` has neither 2 nor 3 axes.
    """
    if len(shape) == 2:
        return ImageLayout(1, shape[0], shape[1], channels_last=True)
    if len(shape) != 3:
        raise ShapeError(f"an image has 2 or 3 axes, not the {len(shape)} of shape {list(shape)}")
    first, second, third = shape
    if third <= _MOST_CHANNELS_LAST and first > third:
        return ImageLayout(third, first, second, channels_last=True)
    return ImageLayout(first, second, third, channels_last=False)


def is_image(space: Space) -> bool:
    """Whether elements of `space` are images: a box of uint8 with 2 or 3 axes and sides of at least 16 pixels."""
    if space.kind != "box" or space.dtype != "uint8" or len(space.shape) not in (2, 3):
        return False
    layout = image_layout(space.shape)
    return min(layout.height, layout.width) >= _SMALLEST_SIDE


class ImageEncoder(nn.Module, ABC):
    """Convolutions and a fully connected layer.

    Parameters are those of plain `nn.Conv2d` and `nn.Linear`; the columns of the latter are the last maps in the order
    [height, width, channel]. Values uint8 are counted in 255ths, floating ones are taken as they are.

    Args:
        shape: of one image, see `image_layout`.
        layers: the first reads images, the last writes maps.
        map_sides: height and width of these maps.
        num_features: F.
        precision: of products and of what lies between two layers; bfloat16 takes 0.6 of the time on processors
            that multiply it, and may take a multiple on others. Weights, their gradients and features are float32.

    Attributes:
        num_features: F, numbers that describe an image.
        convolutions: in the order of computation.
        linear: from the last maps to features.
        block_rows: images that go through the convolutions together.
        first_weights: as those who published the network drew them.
    """

    block_rows = 32
    first_weights: FirstWeights = "orthogonal"

    def __init__(
        self,
        shape: Sequence[int],
        layers: Sequence[nn.Conv2d],
        map_sides: tuple[int, int],
        num_features: int,
        precision: Precision,
    ) -> None:
        super().__init__()
        self._layout = image_layout(shape)
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._arranged = [arrange(layers[0], self._layout.width, not self._layout.channels_last)]
        self._plain = [plain(layer) for layer in layers]
        self.convolutions = nn.ModuleList(layers)
        self.linear = nn.Linear(map_sides[0] * map_sides[1] * layers[-1].out_channels, num_features)
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 or floating [N, *shape] -> features float32 [N, F]; no gradient reaches the images."""
        return self._features(images, self._weights())

    @torch.no_grad()
    def fold(self) -> Callable[[Tensor], Tensor]:
        """`forward` prepared for many calls with the weights of now, to be called under `torch.inference_mode`."""
        weights = [laid_out(weight, self._dtype).clone() for weight in self._weights()]
        return functools.partial(self._features, weights=weights)

    def _computed(self) -> Sequence[Convolution]:
        """How each convolution is computed where the weights are."""
        return self._arranged if on_host(self.linear.weight) else self._plain

    def _weights(self) -> list[Tensor]:
        """Kernel and bias of every convolution, then of the fully connected layer."""
        weights = []
        for computed, layer in zip(self._computed(), self.convolutions, strict=True):
            layer = cast(nn.Conv2d, layer)
            weights += [computed.kernel(layer.weight), cast(Tensor, layer.bias)]
        # uint8 is exact in bfloat16 too, so the scale is left to the weights.
        weights[0] = weights[0] / _WHITE
        return [*weights, self.linear.weight, self.linear.bias]

    def _features(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        *of_maps, weight, bias = weights
        if on_host(images):
            maps = in_blocks(self._maps_of_images, images, self.block_rows, self._dtype, of_maps)
        else:
            maps = self._maps_of_images(images, [laid_out(weight, self._dtype) for weight in of_maps])
        return connect(maps, weight.to(self._dtype), bias.to(self._dtype)).relu_().float()

    def _maps_of_images(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        layout = self._layout
        values = images.to(self._dtype) if images.dtype == torch.uint8 else (images * _WHITE).to(self._dtype)
        if layout.channels_last:
            values = values.reshape(-1, layout.height, layout.width, layout.channels).permute(0, 3, 1, 2)
        if not on_host(values):
            values = values.contiguous(memory_format=torch.channels_last)
        return self._maps(values, weights)

    @abstractmethod
    def _maps(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Images as the first convolution takes them, and kernels and biases -> maps [n, C, h, w], channels last."""


class _Strided(ImageEncoder):
    """Convolutions one after the other, a ReLU after each."""

    def __init__(
        self,
        shape: Sequence[int],
        sizes: Sequence[tuple[int, int, int]],
        num_features: int,
        precision: Precision,
    ) -> None:
        layout = image_layout(shape)
        smallest = 1
        for _, kernel, stride in reversed(sizes):
            smallest = (smallest - 1) * stride + kernel
        if min(layout.height, layout.width) < smallest:
            raise ConfigError(
                f"images of {layout.height} x {layout.width} pixels are too small for {type(self).__name__}, "
                f"which needs sides of at least {smallest}"
            )
        layers, arranged = [], []
        channels, height, width = layout.channels, layout.height, layout.width
        for out_channels, kernel, stride in sizes:
            layers.append(nn.Conv2d(channels, out_channels, kernel, stride))
            arranged.append(arrange(layers[-1], width, planes=not layout.channels_last and len(layers) == 1))
            channels, height, width = out_channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        super().__init__(shape, layers, (height, width), num_features, precision)
        self._arranged = arranged

    def _maps(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        maps = images
        for convolution, kernel, bias in zip(self._computed(), weights[::2], weights[1::2], strict=True):
            # Changed in place before it is seen through a view: through one, autograd would copy gradients.
            maps = convolution(maps, kernel, bias).relu_()
            maps = maps.squeeze(2) if convolution.planes else maps
        return maps


class NatureCNN(_Strided):
    """Three convolutions and a fully connected layer, each with a ReLU (Mnih et al. 2015, methods).

    Raises:
        ConfigError: the sides of an image are below 36 pixels.
    """

    def __init__(self, shape: Sequence[int], num_features: int = 512, precision: Precision = "float32") -> None:
        super().__init__(shape, [(32, 8, 4), (64, 4, 2), (64, 3, 1)], num_features, precision)


class ImpalaShallow(_Strided):
    """Two convolutions and a fully connected layer, each with a ReLU (Espeholt et al. 2018, figure 3 left).

    Raises:
        ConfigError: the sides of an image are below 20 pixels.
    """

    first_weights = "scaled_normal"

    def __init__(self, shape: Sequence[int], num_features: int = 256, precision: Precision = "float32") -> None:
        super().__init__(shape, [(16, 8, 4), (32, 4, 2)], num_features, precision)


class ImpalaDeep(ImageEncoder):
    """Three sections of residual blocks and a fully connected layer (Espeholt et al. 2018, figure 3 right)."""

    first_weights = "scaled_normal"

    def __init__(self, shape: Sequence[int], num_features: int = 256, precision: Precision = "float32") -> None:
        layout = image_layout(shape)
        layers: list[nn.Conv2d] = []
        channels, height, width = layout.channels, layout.height, layout.width
        for out_channels in (16, 32, 32):
            for in_channels in (channels, *[out_channels] * 4):
                layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
            channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
        super().__init__(shape, layers, (height, width), num_features, precision)
        self._arranged *= len(layers)

    def _maps(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        convolve = self._computed()[0]
        layers = list(zip(weights[::2], weights[1::2], strict=True))
        maps = images
        for section in range(0, len(layers), 5):
            first, *blocks = layers[section : section + 5]
            maps = pooled(convolve(maps, *first))
            for inner, outer in zip(blocks[::2], blocks[1::2], strict=True):
                maps = convolve(convolve(maps.relu(), *inner).relu_(), *outer).add_(maps)
        return maps.relu_()
