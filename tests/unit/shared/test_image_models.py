"""Models for images: shapes, constants that stay at home, and fitness for private training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hanse.task import AnyTask, load_task
from hanse.tasks.image.augmentation import Augmentation, augment
from hanse.tasks.image.gradients import Grid, OrientedGradients
from hanse.tasks.image.models import Normalize
from torch import Tensor, nn

MODELS = (
    {"kind": "mlp", "hidden": [8]},
    {"kind": "cnn", "channels": [4, 8], "hidden": [16]},
    {"kind": "cnn", "channels": [4], "hidden": [], "activation": "tanh"},
    {"kind": "gradients", "grid": {"orientations": 6, "cell": 6, "stride": 4}},
    {"kind": "resnet", "width": 4, "blocks": [1, 2]},
)


def task(model: dict[str, Any], channels: int = 3, **options: Any) -> AnyTask:
    return load_task("image", {"shape": [channels, 14, 12], "classes": 5, "model": model} | options)


def images(count: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 14, 12), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_in_logits_out_for_any_batch(model: dict[str, Any], channels: int) -> None:
    network = task(model, channels).model()
    for count in (0, 1, 7):
        logits = network(images(count, channels))
        assert logits.shape == (count, 5)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("model", MODELS)
def test_a_record_does_not_depend_on_its_batch(model: dict[str, Any]) -> None:
    network, batch = task(model).model(), images(6)
    for mode in (True, False):
        network.train(mode)
        torch.testing.assert_close(network(batch)[:2], network(batch[:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_every_weight_learns_and_only_weights_travel(model: dict[str, Any]) -> None:
    network = task(model).model()
    network(images(4)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_resnet_18_has_the_size_of_the_paper() -> None:
    options = {"shape": [3, 32, 32], "classes": 10, "model": {"kind": "resnet"}}
    network = load_task("image", options).model()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 17
    assert sum(p.numel() for p in network.parameters()) == 11_173_962


def test_normalisation_uses_the_declared_constants() -> None:
    layer = Normalize([0.0, 0.5], [1.0, 0.25])
    batch = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    torch.testing.assert_close(layer(batch).flatten(), torch.tensor([0.0, 2.0]))


def strongest(image: Tensor) -> int:
    """The direction of eight with the most gradient in it."""
    layer = OrientedGradients(Grid(orientations=8, cell=8, stride=8))
    return int(layer(image.view(1, 1, 16, 16)).view(8, -1).sum(dim=1).argmax())


def test_gradients_point_from_dark_to_bright() -> None:
    ramp = torch.arange(16.0)
    assert strongest(ramp.expand(16, 16)) == 0
    assert strongest(ramp.view(16, 1).expand(16, 16)) == 2
    assert strongest(-ramp.expand(16, 16)) == 4


def test_gradient_features_are_centred_and_blind_to_brightness() -> None:
    layer = OrientedGradients(Grid())
    batch = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255
    features = layer(batch)
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(batch + 100), features, atol=1e-2, rtol=1e-2)


MOVES = Augmentation(shift=2, rotate=20, scale=0.2, flip=True)


def moved(batch: Tensor, wanted: Augmentation, seed: int = 0) -> Tensor:
    return augment(batch, wanted, torch.Generator().manual_seed(seed))


def test_augmentation_keeps_shape_and_dtype_and_follows_the_generator() -> None:
    batch = images(8)
    first, again, other = moved(batch, MOVES), moved(batch, MOVES), moved(batch, MOVES, seed=1)
    assert first.shape == batch.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert moved(batch.float(), MOVES).dtype == torch.float32


def test_augmentation_moves_each_record_on_its_own() -> None:
    batch = images(8)
    changed = batch.clone()
    changed[1:] = 255 - changed[1:]
    assert torch.equal(moved(batch, MOVES)[0], moved(changed, MOVES)[0])
    same = images(1).expand(8, -1, -1, -1)
    assert not torch.equal(moved(same, MOVES)[0], moved(same, MOVES)[1])


def test_no_augmentation_changes_nothing() -> None:
    batch = images(8)
    assert torch.equal(moved(batch, Augmentation()), batch)


def test_flips_mirror_about_half_of_the_records() -> None:
    batch = images(400)
    flipped = moved(batch, Augmentation(flip=True))
    mirrored = (flipped == batch.flip(3)).flatten(1).all(dim=1)
    kept = (flipped == batch).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all())
    assert 150 < int(mirrored.sum()) < 250


def test_shifts_stay_within_the_declared_pixels() -> None:
    dot = torch.zeros(200, 1, 15, 15)
    dot[:, :, 7, 7] = 1000.0
    shifted = moved(dot, Augmentation(shift=2)).flatten(1).argmax(dim=1)
    rows, columns = shifted // 15 - 7, shifted % 15 - 7
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_rotation_keeps_the_aspect_of_images_that_are_not_square() -> None:
    dot = torch.zeros(1, 1, 21, 41)
    dot[:, :, 10, 28] = 1000.0  # eight pixels to the right of the centre
    turned = augment(dot.expand(300, -1, -1, -1), Augmentation(rotate=90), torch.Generator())
    places = turned.flatten(1).argmax(dim=1)
    rows, columns = (places // 41 - 10).double(), (places % 41 - 20).double()
    distances = (rows.square() + columns.square()).sqrt()
    assert bool(((distances - 8).abs() < 1.0).all())
    assert rows.min() < -6
    assert rows.max() > 6
