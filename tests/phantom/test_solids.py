import numpy as np
import pytest
from tissnet_components.phantom.solids import Ellipsoid, Tube, ring


def points(*places) -> np.ndarray:
    return np.float32(places).T.reshape(3, -1, 1, 1)


def test_an_ellipsoid_is_as_deep_as_its_smallest_radius_and_ends_at_its_surface():
    solid = Ellipsoid((1, 2, 3), (4, 2, 3))
    depth = solid.depth(points((1, 2, 3), (5, 2, 3), (1, 4, 3), (1, 2, 9)))
    np.testing.assert_allclose(depth.ravel(), [2, 0, 0, -2], atol=1e-6)


def test_depth_in_a_tube_is_the_radius_less_the_distance_from_its_axis():
    tube = Tube([(0, 0, 0), (10, 0, 0)], [2, 4])
    depth = tube.depth(points((0, 0, 0), (5, 0, 0), (5, 4, 0), (13, 4, 0)))
    np.testing.assert_allclose(depth.ravel(), [2, 3, -1, -1], atol=1e-6)  # the last: 5 mm from the far end


def test_a_ring_closes_and_its_middle_is_free():
    circle = ring((0, 0, 0), 3, (0, 1), 0.5)
    np.testing.assert_allclose(circle.path[0], circle.path[-1], atol=1e-9)
    depth = circle.depth(points((3, 0, 0), (0, -3, 0), (0, 0, 0)))
    assert depth.ravel()[:2] == pytest.approx(0.5, abs=1e-5) and depth.ravel()[2] < -2
