import numpy as np
import pytest
from scipy import ndimage
from tissnet_components.scans.brain import Background, find_background, find_brain, largest_component

SHAPE = (48, 56, 40)
AXES = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in SHAPE), indexing="ij"))
RADIUS = np.sqrt((AXES**2).sum(0))
BRAIN = RADIUS < 0.75


def scan() -> np.ndarray:
    """A ball, dark in the middle and brighter outwards, in a background of 0."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, SHAPE), 2)
    return np.where(BRAIN, 400 + 400 * RADIUS + 500 * texture, 0).astype(np.float32)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_prepared_scan_has_its_brain_where_it_is_not_zero():
    volume = scan()
    volume[20, 20, 20] = 0  # a hole
    volume[0, 5, 5] = 3  # a speck
    np.testing.assert_array_equal(find_brain(volume), volume != 0)
    assert find_background(volume) == Background(0, 0)


@pytest.mark.parametrize(
    "change",
    [lambda image: np.where(image == 0, -1024, image), lambda image: (image - image.mean()) / image.std(), np.negative],
    ids=["minus 1024", "z-scored", "negated"],
)
def test_any_constant_may_be_the_background(change):
    np.testing.assert_array_equal(find_brain(change(scan())), BRAIN)


@pytest.mark.parametrize("everywhere", [True, False])
def test_noise_is_background(everywhere):
    volume = scan()
    noise = np.random.default_rng(1).normal(0, 0.01 * volume.max(), SHAPE)
    noisy = volume + noise if everywhere else np.where(BRAIN, volume, abs(noise))
    assert overlap(find_brain(noisy.astype(np.float32)), BRAIN) > 0.999
    assert "noise" in str(find_background(noisy))


@pytest.mark.parametrize("rounded", [True, False])
def test_the_ringing_of_cubic_interpolation_is_background(rounded):
    ringing = ndimage.rotate(scan(), 20, reshape=False, order=3)
    straight = ndimage.rotate(BRAIN.astype(float), 20, reshape=False, order=1) > 0.5
    volume = ringing.round() if rounded else ringing
    assert overlap(volume != 0, straight) < 0.9
    assert overlap(find_brain(volume), straight) > 0.95


def test_three_corners_may_hold_something_else():
    volume = np.where(BRAIN, scan(), -50)
    volume[:8, :8, :8] = volume[-8:, :8, :8] = volume[:8, -8:, :8] = 900
    assert find_background(volume).value == -50


def test_a_crop_from_inside_the_brain_is_brain_all_over():
    inside = scan()[18:30, 22:34, 16:24]
    assert find_brain(inside).all()


def test_a_brain_may_lie_around_zero():
    """As after z-scoring inside the mask."""
    volume = scan()
    volume[BRAIN] -= volume[BRAIN].mean()
    np.testing.assert_array_equal(find_brain(volume), volume != 0)


def test_the_largest_component_has_no_holes():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:6, 1:6, 1:6] = True
    filled = mask.copy()
    mask[3, 3, 3] = False
    mask[8, 8, 8] = True
    np.testing.assert_array_equal(largest_component(mask), filled)
    assert not largest_component(np.zeros_like(mask)).any()
