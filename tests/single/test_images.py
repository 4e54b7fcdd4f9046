"""Image encoders against plain layers one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hpcrl.errors import ConfigError, ShapeError
from hpcrl.models.images import ImageEncoder, ImageLayout, ImpalaDeep, ImpalaShallow, NatureCNN, image_layout, is_image
from hpcrl.spaces import Space

Encoder = NatureCNN | ImpalaShallow | ImpalaDeep
ENCODERS: list[type[Encoder]] = [NatureCNN, ImpalaShallow, ImpalaDeep]
SHAPES = [(36, 44), (4, 36, 36), (4, 37, 42), (40, 37, 3), (44, 36, 1), (6, 36, 48)]

encoders = pytest.mark.parametrize("make", ENCODERS)


def filled(encoder: Encoder) -> Encoder:
    """Orthogonal weights, so that features are neither tiny nor all 0, and biases that matter."""
    generator = torch.Generator().manual_seed(5)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, math.sqrt(2), generator)
            assert module.bias is not None
            nn.init.uniform_(module.bias, -0.1, 0.1, generator)
    return encoder


def some_images(rows: int, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=generator)


def plain(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """The same features by torch's layers on [N, C, H, W] in the obvious way."""
    values = images.to(encoder.linear.weight.dtype) / 255 if images.dtype == torch.uint8 else images
    layout = image_layout(images.shape[1:])
    if images.dim() == 3:
        values = values[:, None]
    elif layout.channels_last:
        values = values.permute(0, 3, 1, 2)
    values = values.contiguous()
    layers = list(encoder.convolutions)
    if isinstance(encoder, ImpalaDeep):
        for section in range(3):
            first, *blocks = layers[5 * section : 5 * section + 5]
            values = nn.functional.max_pool2d(first(values), 3, 2, 1)
            for block in (blocks[:2], blocks[2:]):
                values = values + block[1](torch.relu(block[0](torch.relu(values))))
        values = torch.relu(values)
    else:
        for layer in layers:
            values = torch.relu(layer(values))
    return torch.relu(encoder.linear(values.permute(0, 2, 3, 1).flatten(1)))


def exact(encoder: Encoder) -> Encoder:
    """The encoder in float64: rounding moves no maximum to another pixel, and no value across 0."""
    encoder.double()
    encoder._dtype = torch.float64
    return encoder


def gradients_of(encoder: ImageEncoder, features: Tensor) -> list[Tensor]:
    weighting = torch.randn(features.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((features * weighting).sum(), list(encoder.parameters())))


def error(value: Tensor, expected: Tensor) -> float:
    """Of a whole tensor, relative to its norm."""
    return float(((value - expected).norm() / expected.norm()).detach())


@encoders
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_host", [True, False])
def test_features_and_gradients_are_those_of_plain_layers(
    is_host: bool, make: type[Encoder], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("images", "convolutions"):
        monkeypatch.setattr(f"hpcrl.models.{module}.on_host", lambda tensor: is_host)
    encoder = filled(make(shape))
    images = some_images(5, shape)
    expected = plain(encoder, images)
    features = encoder(images)
    assert features.shape == (5, encoder.num_features) and features.dtype == torch.float32
    assert error(features, expected) < 1e-5
    exact(encoder)
    found, true = (gradients_of(encoder, compute(encoder, images)) for compute in (type(encoder).forward, plain))
    for gradient, other in zip(found, true, strict=True):
        assert error(gradient, other) < 1e-5


@encoders
@pytest.mark.parametrize("shape", SHAPES)
def test_acting_computes_what_learning_does(make: type[Encoder], shape: tuple[int, ...]) -> None:
    encoder = filled(make(shape))
    images = some_images(9, shape)
    expected = encoder(images).detach()
    folded = encoder.fold()
    with torch.inference_mode():
        assert error(encoder(images), expected) < 1e-5
        assert error(folded(images), expected) < 1e-5
        assert error(folded(images[::2]), expected[::2]) < 1e-5


@encoders
def test_blocks_of_images_are_joined(make: type[Encoder]) -> None:
    encoder = exact(filled(make((2, 36, 36))))
    images = some_images(70, (2, 36, 36))
    encoder.block_rows = 32
    in_blocks = encoder(images)
    expected = plain(encoder, images)
    assert error(in_blocks, expected) < 1e-5
    for gradient, other in zip(gradients_of(encoder, in_blocks), gradients_of(encoder, expected), strict=True):
        assert error(gradient, other) < 1e-4


@encoders
def test_no_images_have_no_features(make: type[Encoder]) -> None:
    encoder = make((4, 36, 36))
    features = encoder(some_images(0, (4, 36, 36)))
    assert features.shape == (0, encoder.num_features)
    features.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.parameters())
    with torch.inference_mode():
        assert encoder.fold()(some_images(0, (4, 36, 36))).shape == (0, encoder.num_features)


@encoders
def test_folded_weights_stay_as_they_were(make: type[Encoder]) -> None:
    encoder = filled(make((4, 36, 36)))
    images = some_images(2, (4, 36, 36))
    folded = encoder.fold()
    with torch.inference_mode():
        expected = folded(images)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    with torch.inference_mode():
        assert torch.equal(folded(images), expected)


@encoders
def test_floating_images_are_taken_as_they_are(make: type[Encoder]) -> None:
    encoder = filled(make((3, 36, 36)))
    images = torch.randn(2, 3, 36, 36, generator=torch.Generator().manual_seed(11))
    assert error(encoder(images), plain(encoder, images)) < 1e-5


@encoders
def test_bfloat16_is_as_close_as_autocast(make: type[Encoder]) -> None:
    shape = (4, 36, 36)
    encoder, exact = filled(make(shape, precision="bfloat16")), filled(make(shape))
    images = some_images(40, shape)
    features, expected = encoder(images), plain(exact, images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = plain(exact, images)
    assert features.dtype == torch.float32
    assert 1e-4 < error(features, expected) < 1.3 * error(cast.float(), expected)
    gradients = (gradients_of(encoder, features), gradients_of(exact, expected), gradients_of(exact, cast.float()))
    for gradient, wanted, autocast in zip(*gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert error(gradient, wanted) < 2 * error(autocast, wanted)
    with torch.inference_mode():
        assert error(encoder.fold()(images), features.detach()) < 0.01


@pytest.mark.parametrize(
    ("make", "sizes", "widths"),
    [
        (NatureCNN, [(32, 8), (64, 4), (64, 3)], (3136, 512)),
        (ImpalaShallow, [(16, 8), (32, 4)], (2592, 256)),
        (ImpalaDeep, [(16, 3)] * 5 + [(32, 3)] * 10, (3872, 256)),
    ],
)
def test_layers_are_those_of_the_papers(
    make: type[Encoder], sizes: list[tuple[int, int]], widths: tuple[int, int]
) -> None:
    encoder = make((4, 84, 84))
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size[0]) for layer in layers] == sizes
    assert (encoder.linear.in_features, encoder.num_features) == widths


@pytest.mark.parametrize(("make", "smallest"), [(NatureCNN, 36), (ImpalaShallow, 20)])
def test_too_small_images(make: type[NatureCNN], smallest: int) -> None:
    assert make((smallest, smallest))(some_images(1, (smallest, smallest))).isfinite().all()
    with pytest.raises(ConfigError, match=f"{smallest - 1} x 90 .* at least {smallest}"):
        make((3, smallest - 1, 90))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((84, 80), (1, 84, 80, True)),
        ((84, 80, 3), (3, 84, 80, True)),
        ((84, 80, 1), (1, 84, 80, True)),
        ((3, 84, 80), (3, 84, 80, False)),
        ((4, 84, 84), (4, 84, 84, False)),
        ((12, 96, 96), (12, 96, 96, False)),
        ((4, 84, 4), (4, 84, 4, False)),
    ],
)
def test_layouts(shape: tuple[int, ...], layout: tuple[int, int, int, bool]) -> None:
    assert image_layout(shape) == ImageLayout(*layout)


def test_a_row_of_numbers_has_no_layout() -> None:
    with pytest.raises(ShapeError, match="2 or 3 axes"):
        image_layout((84,))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Space("box", (84, 84), "uint8"), True),
        (Space("box", (16, 16, 3), "uint8"), True),
        (Space("box", (4, 84, 84), "uint8"), True),
        (Space("box", (4, 15, 84), "uint8"), False),
        (Space("box", (128,), "uint8"), False),
        (Space("box", (84, 84), "float32"), False),
        (Space("multi_discrete", (84, 84), "uint8"), False),
    ],
)
def test_what_is_an_image(space: Space, expected: bool) -> None:
    assert is_image(space) is expected
