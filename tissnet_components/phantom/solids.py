"""Solids that anatomy is drawn with, in millimetres: how deep a place lies below their surface.

Shapes:
    position: (3, X, Y, Z), mm.
    depth: (X, Y, Z), mm, negative outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Vector = Sequence[float] | np.ndarray  # x, y and z


@dataclass(frozen=True)
class Ellipsoid:
    """Its axes are those of the coordinates."""

    centre: Vector
    radii: Vector

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.subtract(self.centre, self.radii), np.add(self.centre, self.radii)

    def depth(self, position: np.ndarray) -> np.ndarray:
        """About the distance below the surface in mm, negative outside."""
        scaled = (position - column(self.centre)) / column(self.radii)
        return (1 - np.sqrt((scaled**2).sum(0))) * np.float32(min(self.radii))

    def moved(self, move) -> Ellipsoid:
        return replace(self, centre=move(np.array(self.centre, float)))


@dataclass(frozen=True)
class Tube:
    """A chain of capsules; one radius, or one per point of the path."""

    path: Sequence[Vector]
    radius: float | Sequence[float]

    @property
    def radii(self) -> np.ndarray:
        return np.broadcast_to(self.radius, len(self.path))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        margin = self.radii.max()
        path = np.array(self.path)
        return path.min(0) - margin, path.max(0) + margin

    def depth(self, position: np.ndarray) -> np.ndarray:
        """Distance below the surface in mm, negative outside."""
        path, radii = np.array(self.path, np.float32), self.radii.astype(np.float32)
        parts = (_capsule_depth(position, path[i], path[i + 1], radii[i], radii[i + 1]) for i in range(len(path) - 1))
        deepest = next(parts)
        for part in parts:
            np.maximum(deepest, part, out=deepest)
        return deepest

    def moved(self, move) -> Tube:
        return replace(self, path=[move(np.array(point, float)) for point in self.path])


Solid = Ellipsoid | Tube


def column(vector: Vector) -> np.ndarray:
    """A point, to compute with positions: (3, 1, 1, 1)."""
    return np.array(vector, np.float32).reshape(3, 1, 1, 1)


def _capsule_depth(position, start, end, start_radius, end_radius) -> np.ndarray:
    along = end - start
    relative = position - column(start)
    share = sum(relative[k] * along[k] for k in range(3)) / np.float32(along @ along)
    share = np.clip(share, 0, 1)
    gap = np.sqrt(sum((relative[k] - share * along[k]) ** 2 for k in range(3)))
    return start_radius + share * (end_radius - start_radius) - gap


def ring(centre: Vector, radius: float, axes: tuple[int, int], thickness: float) -> Tube:
    """A closed tube around `centre` in the plane of two axes: a semicircular canal, a turn of the cochlea."""
    angles = np.linspace(0, 2 * np.pi, 9)
    path = np.tile(np.array(centre, float), (9, 1))
    path[:, axes[0]] += radius * np.cos(angles)
    path[:, axes[1]] += radius * np.sin(angles)
    return Tube([*path], thickness)
