"""Anatomy of the cerebellopontine angles for simulated patients: the ICBM152 brain in a skull base drawn by hand.

The atlas holds the brain alone. Everything around it (cisterns, petrous bone, internal auditory canals, inner ears,
nerves, vessels, sinuses, muscles) is drawn here from simple solids in atlas coordinates: millimetres towards right,
anterior and superior from the anterior commissure. Positions are approximate, read from two real patients and the
contours of Vestibular-Schwannoma-SEG. A random deformation, shared with the brain, makes a patient out of it.

Arrays have shape (X, Y, Z) and axes towards left, posterior and superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tissnet_components.phantom.atlas import ATLAS_ORIGIN, ATLAS_PER_BRAIN, load_atlas, smooth_field
from tissnet_components.phantom.solids import Ellipsoid, Solid, Tube, Vector, column, ring

SPACING_MM = (0.41, 0.41, 1.5)
SHAPE = (272, 160, 40)
STRUCTURES = (
    "air", "bone", "brain", "csf", "artery", "vein", "nerve", "muscle", "fat", "marrow", "gland", "mucosa", "dura",
    "labyrinth", "tumor",
)  # fmt: skip
LABEL = {name: index for index, name in enumerate(STRUCTURES)}
EVERYWHERE = (slice(None),) * 3


@dataclass(frozen=True)
class Grid:
    """The voxels of a patient's volumes."""

    shape: tuple[int, int, int] = SHAPE
    spacing_mm: tuple[float, float, float] = SPACING_MM

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    @property
    def points_mm(self) -> list[np.ndarray]:
        """Positions along the three axes."""
        return [
            np.arange(n, dtype=np.float32) * np.float32(mm) for n, mm in zip(self.shape, self.spacing_mm, strict=True)
        ]

    @property
    def centre_mm(self) -> np.ndarray:
        return np.array([(n - 1) * mm / 2 for n, mm in zip(self.shape, self.spacing_mm, strict=True)])

    def smooth_field(self, rng: np.random.Generator, *lengths_mm: float) -> np.ndarray:
        """Random field of mean 0 and variance 1 with features of one length, or of one length along each axis."""
        lengths = lengths_mm * 3 if len(lengths_mm) == 1 else lengths_mm
        return smooth_field(
            rng, self.points_mm, [n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True)], lengths
        )

    def speckle(self, rng: np.random.Generator, sigma_mm: float) -> np.ndarray:
        """Random field of mean 0 and variance 1 with details finer than `smooth_field` is good for."""
        noise = rng.standard_normal(self.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, sigma_mm / np.array(self.spacing_mm), mode="wrap", truncate=3)
        return noise / noise.std()


def atlas_frame(rng: np.random.Generator, grid: Grid, target_mm: Vector, at_mm: Vector) -> np.ndarray:
    """Where each voxel of a new patient lies in atlas coordinates: (3, X, Y, Z); `target_mm` comes to lie at `at_mm`.

    Size, proportions and pose of the head vary (affine), and so do all its parts (random fields).
    """
    scale = np.diag(np.array([-1, -1, 1]) * ATLAS_PER_BRAIN * rng.normal(1, 0.03, 3))
    affine = scale @ Rotation.from_euler("xyz", rng.normal(0, [5, 3, 4]), degrees=True).as_matrix()
    middle_mm = np.array(at_mm, np.float32)
    local = np.ix_(*(points - middle for points, middle in zip(grid.points_mm, middle_mm, strict=True)))
    position = np.empty((3, *grid.shape), np.float32)
    for axis in range(3):
        position[axis] = target_mm[axis] + sum(np.float32(affine[axis, k]) * local[k] for k in range(3))
        position[axis] += sum(mm * grid.smooth_field(rng, length) for mm, length in ((2.5, 45), (1.2, 20), (0.5, 9)))
    return position


@lru_cache(maxsize=1)
def distance_to_brain() -> np.ndarray:
    """Distance of each atlas voxel to the brain in mm, 0 inside."""
    return ndimage.distance_transform_edt(load_atlas().brain < 0.5).astype(np.float32)


def look_up(volume: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Values of an atlas volume; below its last slices, where only the cord is left, these repeat."""
    right, anterior, superior = (position[axis] + ATLAS_ORIGIN[axis] for axis in range(3))
    return ndimage.map_coordinates(volume, [right, anterior, np.maximum(superior, 4)], order=1, mode="nearest")


@dataclass
class Canvas:
    """Labels of one patient under construction: solids are painted one over the other."""

    position: np.ndarray
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.full(self.position.shape[1:], LABEL["muscle"], np.uint8)

    def box(self, bounds: tuple[np.ndarray, np.ndarray]) -> tuple[slice, ...]:
        """Voxels that may lie inside the bounds, found on every eighth voxel."""
        low, high = (column(bound) for bound in bounds)
        coarse = self.position[:, ::8, ::8, ::2]
        found = np.argwhere(((coarse > low - 4) & (coarse < high + 4)).all(0))
        if not len(found):
            return (slice(0, 0),) * 3
        steps = np.array([8, 8, 2])
        return tuple(
            slice(max(0, a), b) for a, b in zip((found.min(0) - 1) * steps, (found.max(0) + 2) * steps, strict=True)
        )

    def paint(
        self, tissue: str, solid: Solid, over: Sequence[str] = STRUCTURES, where: np.ndarray | None = None
    ) -> None:
        """Give the voxels inside `solid` to a tissue, if they belong to one of `over` now and lie in `where`."""
        box = self.box(solid.bounds)
        inside = solid.depth(self.position[(slice(None), *box)]) > 0
        if over is not STRUCTURES:
            inside &= self.is_any(over, box)
        if where is not None:
            inside &= where[box]
        self.labels[box][inside] = LABEL[tissue]

    def fill(self, tissue: str, where: np.ndarray) -> None:
        self.labels[where] = LABEL[tissue]

    def is_any(self, tissues: Sequence[str], box: tuple[slice, ...] = EVERYWHERE) -> np.ndarray:
        table = np.zeros(len(STRUCTURES), bool)
        table[[LABEL[name] for name in tissues]] = True
        return table[self.labels[box]]


@dataclass(frozen=True)
class Anatomy:
    """Healthy tissue of one patient."""

    position: np.ndarray  # (3, X, Y, Z), atlas mm
    labels: np.ndarray  # index into STRUCTURES
    white: np.ndarray  # fraction of white matter in voxels of the brain
    fluid: np.ndarray  # fraction of CSF in voxels of the brain


CANAL = Tube([(17, -22.5, -36.5), (21, -22, -36.5), (30, -21, -36.5)], [3.4, 2.5, 1.9])
"""The right internal auditory canal, from its opening (porus) to its end (fundus)."""

COCHLEA = (34.5, -15.5, -39.0)

MIRRORED = (
    ("csf", Ellipsoid((33, 52, -34), (12, 12, 12))),  # eye
    ("marrow", Ellipsoid((16, -28, -69), (7, 11, 9))),  # occipital condyle
    ("bone", Tube([(44, 2, -47), (51, -1, -46)], 5.5)),  # head of the mandible
    ("marrow", Tube([(44, 2, -47), (51, -1, -46)], 3.8)),
    ("bone", Tube([(50, 2, -52), (50, 8, -80)], 3.2)),  # ramus
    ("marrow", Tube([(50, 2, -52), (50, 8, -80)], 1.7)),
    ("gland", Ellipsoid((58, -8, -68), (10, 12, 16))),  # parotid
    ("air", Tube([(42, -15, -42), (50, -16, -42), (58, -14, -44), (66, -15, -42)], [3, 1.5, 2, 2.5])),  # ear canal
    ("vein", Tube([(56, -62, -22), (52, -50, -34), (45, -40, -45), (35, -31, -55), (29, -18, -66), (28, -14, -82)],
                  [4, 4.5, 4.5, 4.5, 4.5, 4])),  # sigmoid sinus, jugular vein
    ("bone", Tube([(24, -4, -80), (23, -6, -62), (23, -7, -50), (13, 4, -44), (12, 2, -37)], 4.0)),  # carotid canal
    ("artery", Tube([(24, -4, -80), (23, -6, -62), (23, -7, -50), (13, 4, -44), (12, 2, -37), (11, 9, -32), (9, 9, -26),
                     (9, 3, -22), (12, 2, -16), (26, 4, -12)], [2.7, 2.7, 2.7, 2.6, 2.5, 2.4, 2.2, 2.0, 1.6, 1.2])),
    ("csf", Ellipsoid((18, -1, -34), (2.8, 6.5, 5.5))),  # Meckel's cave
    ("csf", CANAL),
)  # fmt: skip
INNER_EAR = (
    ("labyrinth", ring(COCHLEA, 2.1, (1, 2), 0.75)),
    ("labyrinth", ring((35.5, -15.0, -38.6), 0.9, (1, 2), 0.7)),
    ("labyrinth", Ellipsoid((37, -21, -36.5), (2.0, 2.8, 2.4))),  # vestibule
    ("labyrinth", ring((41, -24, -36), 3.6, (0, 1), 0.62)),  # semicircular canals: lateral, posterior, superior
    ("labyrinth", ring((40, -27, -34), 3.6, (1, 2), 0.62)),
    ("labyrinth", ring((39, -21, -32.5), 3.6, (0, 2), 0.62)),
)
CISTERN = (
    ("nerve", Tube([(13, -29, -41), (17, -23.5, -37), (29, -20.5, -35.8)], 0.5)),  # VII
    ("nerve", Tube([(14, -31, -42), (18, -24.0, -38), (29, -21.5, -37.6)], 0.65)),  # VIII
    ("nerve", Tube([(15, -17, -34), (18, -3, -33)], 1.5)),  # V
    ("nerve", Tube([(4, -20, -47), (9, -4, -36)], 0.4)),  # VI
    ("nerve", Tube([(11, -36, -53), (24, -26, -54)], 0.6)),  # IX to XI
    (
        "artery",
        Tube([(1, -14, -43), (8, -17, -43), (15, -26, -39), (18, -29, -41)], 0.6),
    ),  # anterior inferior cerebellar
    ("artery", Tube([(0, -10, -22), (8, -13, -20), (17, -22, -19), (19, -33, -15)], 0.95)),  # posterior cerebral
    ("vein", Tube([(16, -20, -30), (20, -12, -29)], 0.7)),  # superior petrosal
)


def skull_base(rng: np.random.Generator, grid: Grid, position: np.ndarray, brain_position: np.ndarray) -> Anatomy:
    """Draw a patient. The brain may be displaced: `brain_position` says where in the atlas it is looked up."""
    canvas = Canvas(position)
    gap_mm = look_up(distance_to_brain(), brain_position)
    cavity = cranial_cavity(position, gap_mm)
    draw_soft_tissue(rng, grid, canvas)
    draw_bone(rng, grid, canvas, cavity)
    draw_midline(rng, grid, canvas)
    draw_sides(rng, canvas, MIRRORED + INNER_EAR)
    canvas.fill("csf", cavity)
    canvas.paint("gland", Ellipsoid((0, 6, -33), (6, 4, 3.5)))  # pituitary
    draw_dura(rng, grid, canvas, cavity, position)
    white, fluid = draw_brain(rng, grid, canvas, brain_position, gap_mm)
    draw_sides(rng, canvas, CISTERN, over=("csf",))
    draw_vertebral_arteries(rng, canvas)
    draw_small_vessels(rng, grid, canvas, gap_mm)
    return Anatomy(position, canvas.labels, white, fluid)


def posterior_wall(position: np.ndarray) -> np.ndarray:
    """Distance in mm in front of the bone that bounds the posterior fossa: clivus and petrous pyramids."""
    right, anterior, superior = position
    clivus = np.interp(superior, [-80, -70, -60, -50, -38, -20], [-32, -29, -24, -15, -6, -3])
    flare = np.interp(np.abs(right), [0, 6, 12, 20, 29, 38, 48, 60], [0, 1, 5.5, 13.5, 20, 29, 36, 45])
    return anterior - np.float32(clivus) + np.float32(flare)


def petrous_pyramids(position: np.ndarray) -> np.ndarray:
    """Where the bone between posterior and middle fossa is, which holds canal and inner ear."""
    right, _, superior = position
    thickness = np.interp(superior, [-58, -50, -44, -36, -31, -28], [6, 16, 18, 13, 5, 0])
    in_front = posterior_wall(position)
    return (in_front > 0) & (in_front < thickness) & (np.abs(right) > 9)


def cranial_cavity(position: np.ndarray, gap_mm: np.ndarray) -> np.ndarray:
    """Everything inside the dura: the brain and what lies right beside it, and the cisterns behind the clivus."""
    right, _, superior = position
    reach = np.interp(np.abs(right), [0, 20, 36, 48, 56], [16, 16, 9, 3, 2])
    reach = np.minimum(reach, np.interp(superior, [-74, -62], [6, 16]))
    reach *= np.where(np.abs(right) > 22, np.interp(superior, [-41, -35], [1, 0.3]), 1)
    cisterns = (posterior_wall(position) < 0) & (gap_mm < reach)
    suprasellar = Ellipsoid((0, 0, -17), (13, 12, 8)).depth(position) > 0
    return ((gap_mm < 0.6) | cisterns | suprasellar) & ~petrous_pyramids(position)


def draw_soft_tissue(rng: np.random.Generator, grid: Grid, canvas: Canvas) -> None:
    """Muscles with sheets of fat between them, and the outline of the head."""
    right, anterior, superior = canvas.position
    for lengths in ((9, 22, 20), (14, 14, 25), (5, 12, 14)):
        sheet = np.abs(grid.smooth_field(rng, *lengths)) < rng.uniform(0.1, 0.22)
        canvas.fill("fat", sheet)
    bundle = grid.smooth_field(rng, 7, 11, 12) > 1.2
    canvas.fill("gland", bundle)
    surface = (1 - np.sqrt((right / 80) ** 2 + ((anterior + 18) / 100) ** 2)) * 80 + np.minimum(0, superior + 45) * 0.25
    canvas.fill("fat", surface < rng.uniform(5, 11))
    canvas.fill("muscle", surface < 2)
    canvas.fill("air", surface < 0)


def draw_bone(rng: np.random.Generator, grid: Grid, canvas: Canvas, cavity: np.ndarray) -> None:
    """Calvaria with its marrow, and the petrous pyramids with air cells and islands of marrow."""
    right, _, superior = canvas.position
    outside_mm = ndimage.distance_transform_edt(~cavity, sampling=grid.spacing_mm).astype(np.float32)
    thickness = 4.5 + 0.8 * grid.smooth_field(rng, 25)
    shell = outside_mm < thickness
    canvas.fill("bone", shell)
    canvas.fill("marrow", shell & (outside_mm > 1.4) & (outside_mm < thickness - 1.4))
    base = 1 / (1 + ((superior + 50) / 7) ** 2) + 0.35 * grid.smooth_field(rng, 6) > 0.75
    canvas.fill("bone", base & canvas.is_any(("muscle", "gland")))
    in_front = posterior_wall(canvas.position)
    pyramid = petrous_pyramids(canvas.position) & (np.abs(right) < 57 + 4 * grid.smooth_field(rng, 12))
    canvas.fill("bone", pyramid)
    islands = grid.smooth_field(rng, 4) + 0.6 * grid.smooth_field(rng, 9)
    apex = (np.abs(right) < 26) & (in_front > 2.5)
    canvas.fill("marrow", pyramid & apex & (islands > rng.uniform(-0.8, 1)))
    cells = pyramid & (np.abs(right) > 42 + 4 * grid.smooth_field(rng, 10))
    canvas.fill("air", cells & (grid.smooth_field(rng, 3.5) > 0))
    canvas.fill("mucosa", cells & (islands > 1.5))
    canvas.fill("marrow", pyramid & ~apex & (islands > 2.1))


def draw_midline(rng: np.random.Generator, grid: Grid, canvas: Canvas) -> None:
    """Clivus, sphenoid sinus, nasopharynx and the muscles before the spine."""
    right, _, superior = canvas.position
    in_front = posterior_wall(canvas.position)
    width = np.interp(superior, [-72, -50, -30], [14, 16, 10]) + 1.5 * grid.smooth_field(rng, 8)
    clivus = (np.abs(right) < width) & (in_front > -2) & (superior < -26)
    canvas.fill("bone", clivus & (in_front < 12))
    canvas.fill("marrow", clivus & (in_front > 1.3) & (in_front < 10))
    wall = float(rng.uniform(0.5, 1.6))
    airways = (
        Ellipsoid((rng.uniform(2, 6), 16, -37), (10, 13, 13)),
        Ellipsoid((-rng.uniform(2, 6), 15, -38), (9, 12, 12)),
        Ellipsoid((0, 25, -62), (10, 10, 17)),
        Ellipsoid((0, 40, -45), (16, 16, 14)),
    )
    for muscle in (Ellipsoid((8, -4, -66), (8, 6, 15)), Ellipsoid((-8, -4, -66), (8, 6, 15))):
        canvas.paint("muscle", muscle)
    for airway in airways:
        canvas.paint("mucosa", replace(airway, radii=np.add(airway.radii, wall)))
    for airway in airways:
        canvas.paint("air", airway)


def draw_sides(rng: np.random.Generator, canvas: Canvas, parts, over: Sequence[str] = STRUCTURES) -> None:
    """Paint parts of the right side and their mirror images, each a little off its place."""
    for side in (1, -1):
        offset = rng.normal(0, 0.5, 3)
        for tissue, solid in parts:
            jitter = offset + (rng.normal(0, 0.3, 3) if tissue in ("nerve", "artery", "vein") else 0)
            canvas.paint(tissue, solid.moved(lambda point, j=jitter, s=side: (point + j) * [s, 1, 1]), over)


def draw_dura(rng: np.random.Generator, grid: Grid, canvas: Canvas, cavity: np.ndarray, position: np.ndarray) -> None:
    """The lining of the cavity, the cavernous sinuses, and the tentorium between cerebellum and temporal lobes."""
    right, anterior, superior = position
    shell = ndimage.binary_dilation(cavity, iterations=2) & ~cavity
    canvas.fill("dura", shell & canvas.is_any(("bone", "marrow", "muscle", "fat", "gland")))
    for side in (1, -1):
        sinus = Ellipsoid((side * 12, 5, -31), (5, 9, 6))
        canvas.paint("vein", sinus, over=("bone", "marrow", "muscle", "fat", "gland", "dura", "mucosa"))
    edge = -19 - 0.85 * (np.abs(right) - 16) - 1.9 * (superior + 26)
    sheet = (np.abs(anterior - edge) < 0.8) & (superior > -31) & (np.abs(right) > 15)
    canvas.fill("dura", sheet & cavity)


def draw_brain(
    rng: np.random.Generator, grid: Grid, canvas: Canvas, brain_position: np.ndarray, gap_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Brain where the atlas has more tissue than CSF; returns its fractions of white matter and of CSF in fissures."""
    atlas = load_atlas()
    grey, white = (look_up(volume, brain_position) for volume in (atlas.grey, atlas.white))
    tissue = np.maximum(grey + white, np.float32(0.1))
    rough = tissue + 0.1 * grid.smooth_field(rng, 5)
    canvas.fill("brain", canvas.is_any(("csf",)) & (gap_mm < 0.4) & (rough > rng.uniform(0.35, 0.5)))
    fluid = np.maximum(fissures(rng, grid, brain_position, white / tissue), 0.6 * np.clip(1.0 - 1.5 * rough, 0, 1))
    return white**2 / (white**2 + grey**2 + np.float32(0.01)) * (1 - fluid), fluid


def fissures(rng: np.random.Generator, grid: Grid, brain_position: np.ndarray, white_share: np.ndarray) -> np.ndarray:
    """Fraction of CSF in the folia of the cerebellum, nearly parallel, and in the sulci of the temporal lobes."""
    right, anterior, superior = brain_position
    bend = 3.5 * grid.smooth_field(rng, 22) + 1.3 * grid.smooth_field(rng, 7)
    folia = np.sin((0.9 * anterior + 0.35 * superior + 0.012 * right**2) * rng.uniform(1.0, 1.5) + bend)
    folia = np.exp(-((folia / 0.16) ** 2))
    sulci = np.exp(-((grid.smooth_field(rng, 8, 12, 10) / 0.055) ** 2))
    cerebellum = 1 / (1 + np.exp((anterior + 33 + 0.25 * np.abs(right) + 1.1 * (superior + 30)) / 1.5))
    open_here = np.clip(0.3 + 0.6 * grid.smooth_field(rng, 6), 0, 1) / (1 + np.exp((white_share - 0.4) / 0.05))
    return open_here * (cerebellum * 0.7 * folia + (1 - cerebellum) * sulci)


def draw_vertebral_arteries(rng: np.random.Generator, canvas: Canvas) -> None:
    """Vertebral arteries of different size, and the winding basilar artery that they join."""
    bend = rng.normal(0, 3)
    joint = np.array([0.5 * bend, -16 + rng.normal(0, 1), -52 + rng.normal(0, 3)])
    for side in (1, -1):
        radius = rng.uniform(1.0, 2.0)
        path: list[Vector] = [(side * 17, -38, -78), (side * 10, -31, -66), (side * 6 + bend, -25, -59), joint]
        canvas.paint("artery", Tube(path, radius))
    canvas.paint(
        "artery", Tube([joint, (bend, -10.5, -42), (-0.3 * bend, -10, -32), (0, -10, -21)], rng.uniform(1.4, 2))
    )


def draw_small_vessels(rng: np.random.Generator, grid: Grid, canvas: Canvas, gap_mm: np.ndarray) -> None:
    """Winding vessels: two random fields vanish together along random curves."""
    for tissue, length, radius, places in (
        ("vein", 11, 0.5, ("csf", "dura")),
        ("vein", 14, 0.9, ("muscle", "fat", "gland")),
        ("artery", 16, 0.5, ("csf",)),
        ("nerve", 9, 0.3, ("csf",)),
    ):
        off_axis = grid.smooth_field(rng, length) ** 2 + grid.smooth_field(rng, length) ** 2
        canvas.fill(tissue, (off_axis < (2 * radius / length) ** 2) & canvas.is_any(places))
