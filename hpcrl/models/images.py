"""Encoders of images: convolutions and one fully connected layer, arranged for the time they take on a CPU.

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
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hpcrl.errors import ConfigError, ShapeError
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


class _Convolution(NamedTuple):
    """How one convolution is computed.

    Attributes:
        folded: columns of its input that are taken for one column with as many times the channels.
        planes: whether its input is images [n, C, H, W], whose channels are then the depth of a volume: a view, where
            channels last would be a copy as long as a quarter of the convolution.
        stride, padding: as torch's convolutions take them.
    """

    folded: int
    planes: bool
    stride: tuple[int, ...]
    padding: int

    def kernel(self, weight: Tensor) -> Tensor:
        """Weight [O, C, h, w] -> [O, folded * C, h, w / folded], or for planes [O, folded, C, h, w / folded]."""
        if self.folded == 1:
            return weight
        kernel = weight.unflatten(3, (-1, self.folded)).permute(0, 4, 1, 2, 3)
        return kernel if self.planes else kernel.flatten(1, 2)

    def __call__(self, maps: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Maps [n, C, H, W] -> [n, O, H', W'], or for planes [n, O, 1, H', W']; channels last but for planes."""
        if self.planes:
            volumes = maps.unflatten(3, (-1, self.folded)).permute(0, 4, 1, 2, 3)
            return functional.conv3d(volumes, kernel, bias, self.stride)
        if self.folded > 1:
            rows, channels, height, width = maps.shape
            maps = maps.permute(0, 2, 3, 1).reshape(rows, height, width // self.folded, self.folded * channels)
            maps = maps.permute(0, 3, 1, 2)
        return functional.conv2d(maps, kernel, bias, self.stride, self.padding)


def _arranged(layer: nn.Conv2d, width: int, planes: bool) -> _Convolution:
    """How `layer` is computed on maps of `width` columns; `planes`: on images whose channels are first."""
    (down, right), padding = layer.stride, int(layer.padding[0])
    if right == 1 or padding or width % right or layer.kernel_size[1] % right:
        return _Convolution(1, False, (down, right), padding)
    return _Convolution(right, planes, (1, down, 1) if planes else (down, 1), 0)


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
    """

    block_rows = 32

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
        self._arranged = [_arranged(layers[0], self._layout.width, not self._layout.channels_last)]
        self.convolutions = nn.ModuleList(layers)
        self.linear = nn.Linear(map_sides[0] * map_sides[1] * layers[-1].out_channels, num_features)
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 or floating [N, *shape] -> features float32 [N, F]; no gradient reaches the images."""
        return self._features(images, self._weights())

    @torch.no_grad()
    def fold(self) -> Callable[[Tensor], Tensor]:
        """`forward` prepared for many calls with the weights of now, to be called under `torch.inference_mode`."""
        weights = [_laid_out(weight, self._dtype).clone() for weight in self._weights()]
        return functools.partial(self._features, weights=weights)

    def _weights(self) -> list[Tensor]:
        """Kernel and bias of every convolution, then of the fully connected layer."""
        weights = []
        for arranged, layer in zip(self._arranged, self.convolutions, strict=True):
            layer = cast(nn.Conv2d, layer)
            weights += [arranged.kernel(layer.weight), cast(Tensor, layer.bias)]
        # uint8 is exact in bfloat16 too, so the scale is left to the weights.
        weights[0] = weights[0] / _WHITE
        return [*weights, self.linear.weight, self.linear.bias]

    def _features(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        *of_maps, weight, bias = weights
        maps = _in_blocks(self._maps_of_images, images, self.block_rows, self._dtype, of_maps)
        return _connect(maps, weight.to(self._dtype), bias.to(self._dtype)).relu_().float()

    def _maps_of_images(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        layout = self._layout
        values = images.to(self._dtype) if images.dtype == torch.uint8 else (images * _WHITE).to(self._dtype)
        if layout.channels_last:
            values = values.reshape(-1, layout.height, layout.width, layout.channels).permute(0, 3, 1, 2)
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
            arranged.append(_arranged(layers[-1], width, planes=not layout.channels_last and len(layers) == 1))
            channels, height, width = out_channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        super().__init__(shape, layers, (height, width), num_features, precision)
        self._arranged = arranged

    def _maps(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        maps = images
        for convolution, kernel, bias in zip(self._arranged, weights[::2], weights[1::2], strict=True):
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

    def __init__(self, shape: Sequence[int], num_features: int = 256, precision: Precision = "float32") -> None:
        super().__init__(shape, [(16, 8, 4), (32, 4, 2)], num_features, precision)


class ImpalaDeep(ImageEncoder):
    """Three sections of residual blocks and a fully connected layer (Espeholt et al. 2018, figure 3 right)."""

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
        convolve = self._arranged[0]
        layers = list(zip(weights[::2], weights[1::2], strict=True))
        maps = images
        for section in range(0, len(layers), 5):
            first, *blocks = layers[section : section + 5]
            maps = _pooled(convolve(maps, *first))
            for inner, outer in zip(blocks[::2], blocks[1::2], strict=True):
                maps = convolve(convolve(maps.relu(), *inner).relu_(), *outer).add_(maps)
        return maps.relu_()


def _pooled(maps: Tensor) -> Tensor:
    """Maxima over 3 x 3 pixels at every second one, beyond the edges nothing: [n, C, H, W] -> [n, C, H', W'].

    Without gradients as maxima of views, a quarter of the time of torch's pooling.
    """
    if torch.is_grad_enabled():
        return functional.max_pool2d(maps, 3, 2, 1)
    return _pooled_rows(_pooled_rows(maps).transpose(2, 3)).transpose(2, 3)


def _pooled_rows(maps: Tensor) -> Tensor:
    even, odd = maps[:, :, ::2], maps[:, :, 1::2]
    pooled = even.clone()
    for of_pooled, beside in ((pooled[:, :, : odd.shape[2]], odd), (pooled[:, :, 1:], odd[:, :, : even.shape[2] - 1])):
        torch.maximum(of_pooled, beside, out=of_pooled)
    return pooled


def _connect(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps [N, C, h, w] and weight [F, h * w * C] -> [N, F].

    In float32 and for more than a few rows as a convolution over the whole map: the library that computes those can
    take half the time of the one that multiplies matrices.
    """
    few = 64 if torch.is_grad_enabled() else 8
    if weight.dtype == torch.bfloat16 or len(maps) < few:
        return functional.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, bias)
    kernel = weight.unflatten(1, (*maps.shape[2:], maps.shape[1])).permute(0, 3, 1, 2)
    return functional.conv2d(maps, kernel, bias).flatten(1)


def _in_blocks(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    images: Tensor,
    block_rows: int,
    dtype: torch.dtype,
    weights: Sequence[Tensor],
) -> Tensor:
    """`function(images, weights)` with weights of `dtype` on `block_rows` images at a time, joined along axis 0."""
    if torch.is_grad_enabled():
        return cast(Tensor, _Blocks.apply(function, images, block_rows, dtype, *weights))
    laid_out = [_laid_out(weight, dtype) for weight in weights]
    return _joined([function(block, laid_out) for block in images.split(block_rows)])


class _Blocks(torch.autograd.Function):
    """A function of images and weights by blocks, whose gradients by the weights are summed in float32."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable, images: Tensor, rows: int, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        ctx.weights = [_laid_out(weight, dtype).detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            ctx.blocks = [function(block, ctx.weights) for block in images.split(rows)]
        return _joined([block.detach() for block in ctx.blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in ctx.weights]
        for block, of_block in zip(ctx.blocks, gradient.split(len(ctx.blocks[0])), strict=True):
            gradients = torch.autograd.grad(block, ctx.weights, of_block)
            for total, new in zip(sums, gradients, strict=True):
                total.add_(new)
        return None, None, None, None, *sums


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))


def _laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same weight, channels last where it has channels."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.to(dtype, memory_format=formats.get(weight.dim(), torch.preserve_format))
