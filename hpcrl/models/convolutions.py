"""Convolutions and what lies between them, each arranged for the time that it takes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hpcrl.models.host import on_host


class Convolution(NamedTuple):
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


def arrange(layer: nn.Conv2d, width: int, planes: bool) -> Convolution:
    """How `layer` is computed on maps of `width` columns; `planes`: on images whose channels are first."""
    down, right = layer.stride
    if right == 1 or layer.padding[0] or width % right or layer.kernel_size[1] % right:
        return plain(layer)
    return Convolution(right, planes, (1, down, 1) if planes else (down, 1), 0)


def plain(layer: nn.Conv2d) -> Convolution:
    """`layer` as torch computes it."""
    (down, right), padding = layer.stride, int(layer.padding[0])
    return Convolution(1, False, (down, right), padding)


def pooled(maps: Tensor) -> Tensor:
    """Maxima over 3 x 3 pixels at every second one, beyond the edges nothing: [n, C, H, W] -> [n, C, H', W'].

    Without gradients, on a CPU, as maxima of views, a quarter of the time of torch's pooling.
    """
    if torch.is_grad_enabled() or not on_host(maps):
        return functional.max_pool2d(maps, 3, 2, 1)
    return _pooled_rows(_pooled_rows(maps).transpose(2, 3)).transpose(2, 3)


def _pooled_rows(maps: Tensor) -> Tensor:
    even, odd = maps[:, :, ::2], maps[:, :, 1::2]
    maxima = even.clone()
    for of_maxima, beside in ((maxima[:, :, : odd.shape[2]], odd), (maxima[:, :, 1:], odd[:, :, : even.shape[2] - 1])):
        torch.maximum(of_maxima, beside, out=of_maxima)
    return maxima


def connect(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps [N, C, h, w] and weight [F, h * w * C] -> [N, F].

    On a CPU in float32 and for more than a few rows as a convolution over the whole map: the library that computes
    those can take half the time of the one that multiplies matrices.
    """
    few = 64 if torch.is_grad_enabled() else 8
    if weight.dtype == torch.bfloat16 or len(maps) < few or not on_host(maps):
        return functional.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, bias)
    kernel = weight.unflatten(1, (*maps.shape[2:], maps.shape[1])).permute(0, 3, 1, 2)
    return functional.conv2d(maps, kernel, bias).flatten(1)


def in_blocks(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    images: Tensor,
    block_rows: int,
    dtype: torch.dtype,
    weights: Sequence[Tensor],
) -> Tensor:
    """`function(images, weights)` on a few images at a time.

    Args:
        function: images [n, ...] and weights -> [n, ...].
        images: [N, ...]; no gradient reaches them.
        block_rows: n, but for the last ones.
        dtype: of the weights that the function gets, channels last.
        weights: float32, as are their gradients.

    Returns:
        [N, ...].
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _Blocks.apply(function, images, block_rows, dtype, *weights))
    prepared = [laid_out(weight, dtype) for weight in weights]
    return _joined([function(block, prepared) for block in images.split(block_rows)])


class _Blocks(torch.autograd.Function):
    """A function of images and weights by blocks, whose gradients by the weights are summed in float32."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable, images: Tensor, rows: int, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        ctx.weights = [laid_out(weight, dtype).detach().requires_grad_() for weight in weights]
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


def laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same weight, channels last where it has channels."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.to(dtype, memory_format=formats.get(weight.dim(), torch.preserve_format))
