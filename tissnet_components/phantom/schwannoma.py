"""One simulated patient with a vestibular schwannoma: high-resolution T2 and contrast-enhanced T1 of a skull base.

Arrays have shape (X, Y, Z) on a `Grid`. Sequences are those of Vestibular-Schwannoma-SEG (Shapey et al. 2021, doi
10.7937/TCIA.9YTJ-5Q73), whose T2 is measured after the contrast agent was given: the acquisition times say so in 241
of its 242 patients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import fft, ndimage
from tissnet_components.errors import BadCase, UserError
from tissnet_components.phantom.atlas import ATLAS_PER_BRAIN
from tissnet_components.phantom.glioma import Site, push_aside, radius_of
from tissnet_components.phantom.physics import (
    TISSUES_1_5T,
    Tissue,
    Value,
    balanced_steady_state,
    blend,
    constructive_interference,
    driven_equilibrium,
    spoiled_gradient_echo,
    with_gadolinium,
)
from tissnet_components.phantom.skull_base import (
    CANAL,
    LABEL,
    STRUCTURES,
    Anatomy,
    Grid,
    atlas_frame,
    posterior_wall,
    skull_base,
)
from tissnet_components.phantom.solids import Ellipsoid, Tube
from tissnet_components.prepare.contours import read_contours, tumor_mask

MRSequence = Callable[..., Value]
Contours = list[np.ndarray]  # polygons (N, 3), LPS mm
SITE = (20.0, -23.5, -37.0)  # where a schwannoma of the right side is centred, in atlas coordinates
VOLUME_ML = (0.1, 20.0)
VARIED_ML = (0.3, 20.0)
VARIED_SCALE = (0.85, 1.4)  # of a real tumor's diameter
ATLAS_PER_PATIENT = float(np.prod(ATLAS_PER_BRAIN))  # of volumes
BINS = 64  # of the phase by off-resonance, from -pi to pi

RELAXATION = dict(zip(STRUCTURES, STRUCTURES, strict=True)) | {
    "brain": "grey",
    "artery": "blood",
    "vein": "blood",
    "labyrinth": "csf",
    "tumor": "schwannoma",
}
"""Which of `TISSUES_1_5T` a label has."""

AGENT_MMOL_L = {
    "brain": (0.0, 0.01),
    "artery": (0.5, 1.0),
    "vein": (0.3, 0.8),
    "muscle": (0.02, 0.08),
    "fat": (0.0, 0.02),
    "marrow": (0.02, 0.1),
    "gland": (0.1, 0.35),
    "mucosa": (0.15, 0.5),
    "dura": (0.1, 0.4),
    "pia": (0.0, 0.4),
    "tumor": (0.2, 0.7),
}
"""Contrast agent some minutes after the injection, lowest and highest; brain has a barrier, CSF and bone have none."""


BRIGHTNESS = {
    "csf": (0.5, 1.0),
    "brain": (0.1, 0.4),
    "nerve": (0.1, 0.4),
    "muscle": (0.03, 0.4),
    "vein": (0.03, 0.8),
    "fat": (0.05, 1.1),
    "marrow": (0.05, 0.9),
    "gland": (0.05, 0.8),
    "mucosa": (0.08, 1.0),
    "dura": (0.03, 0.3),
}
"""Of T2 with varied contrast: signal of a tissue, lowest and highest, relative to that of fluid at rest."""

TUMOR_BRIGHTNESS = (-0.25, 0.9)
"""Of T2 with varied contrast: the tumor's solid part, where brain is 0 and fluid is 1 on a logarithmic scale."""


@dataclass(frozen=True)
class Schwannoma:
    """Of one tumor: where it is, and at each of its voxels how cystic it is and how much agent it takes up."""

    mask: np.ndarray  # bool
    cystic: np.ndarray  # fraction, of mask's voxels alone
    agent: np.ndarray  # mmol/l, of mask's voxels alone


def vestibular_patient(
    rng: np.random.Generator, contours: Contours | None = None, grid: Grid | None = None, varied: bool = False
) -> dict[str, np.ndarray]:
    """Simulate one patient.

    Args:
        contours: of a real tumor, in mm towards left, posterior and superior; None draws a tumor.
        varied: sharpness, noise, shading and the size of the tumor vary more; and in half of the patients T2 is as no
            sequence in particular shows it, so that brightness tells little: see `vary_contrast`.

    Returns:
        ``t2`` and ``t1ce`` (int16, arbitrary units), and ``seg`` (uint8, 1 is tumor).
    """
    grid = grid or Grid()
    side = int(rng.choice([-1, 1]))
    jitter = rng.uniform([-10, -9, -7], [38, 9, 7]) * [side, 1, 1] * np.minimum(1, grid.centre_mm / Grid().centre_mm)
    position = atlas_frame(rng, grid, np.multiply(SITE, [side, 1, 1]), grid.centre_mm - jitter)
    if contours is None:
        volume = float(np.exp(rng.uniform(*np.log(VARIED_ML)))) if varied else volume_ml(rng)
        mask = grow_tumor(rng, grid, position, side, volume)
    else:
        if varied:
            contours = enlarged(contours, rng.uniform(*VARIED_SCALE))
        mask = place_contours(rng, grid, position, side, contours)
    anatomy = skull_base(rng, grid, position, displaced_brain(rng, grid, position, mask))
    anatomy = with_tumor(rng, grid, anatomy, mask)
    schwannoma = compose_tumor(rng, grid, mask)
    return {**image(rng, grid, anatomy, schwannoma, varied), "seg": mask.astype(np.uint8)}


def varied_grid(rng: np.random.Generator) -> Grid:
    """Anything from a close crop around one ear to a whole head, in slices of 1 to 2 mm; at most 300 voxels wide."""
    head = rng.random() < 0.5
    width_mm = float(rng.uniform(150, 200) if head else rng.uniform(50, 130))
    depth_mm = float(rng.uniform(170, 215) if head else rng.uniform(45, 100))
    pixel_mm = max(float(rng.uniform(0.4, 0.75)), max(width_mm, depth_mm) / 300)
    slice_mm = float(rng.uniform(1, 2))
    slices = round(float(rng.uniform(36, 66)) / slice_mm)
    return Grid((round(width_mm / pixel_mm), round(depth_mm / pixel_mm), slices), (pixel_mm, pixel_mm, slice_mm))


def enlarged(contours: Contours, factor: float) -> Contours:
    """A tumor of `factor` times the diameter, at the same place."""
    centre = np.concatenate(contours).mean(0)
    return [centre + factor * (loop - centre) for loop in contours]


def volume_ml(rng: np.random.Generator) -> float:
    """Log-normal around 1.4 ml, the median of the collection, whose 5th and 95th percentiles are 0.23 and 6.8 ml."""
    return float(np.clip(np.exp(rng.normal(np.log(1.4), 1.05)), *VOLUME_ML))


def grow_tumor(rng: np.random.Generator, grid: Grid, position: np.ndarray, side: int, volume: float) -> np.ndarray:
    """Mask of `volume` ml: a plug in the internal auditory canal and a ball in the cistern, both lobulated, as one.

    Both are level sets of how many of their own radii a voxel lies away; the lower counts, and the voxels with the
    lowest values are the tumor, as many as fill the volume.
    """
    in_canal = min(float(rng.uniform(0.1, 0.45)), 0.8 * volume)
    plug_radius = float(rng.uniform(1.8, 3.2))
    plug = canal_axis(in_canal * ATLAS_PER_PATIENT, plug_radius, side)
    ball_radius = radius_of((volume - in_canal) * ATLAS_PER_PATIENT)
    centre = np.array([17 - 0.35 * ball_radius, -22.5 - 0.45 * ball_radius, -36.5]) + rng.normal(0, [0.8, 0.8, 1])
    ball = Ellipsoid(centre * [side, 1, 1], rng.uniform(0.85, 1.15, 3) * [1.1, 1, 1])  # of about one mm
    lobulation = np.exp(sum(a * grid.smooth_field(rng, length) for a, length in ((0.16, 14), (0.07, 6))))
    from_plug = -plug.depth(position) * lobulation / plug_radius
    from_ball = (1 - ball.depth(position) / min(ball.radii)) * lobulation
    from_ball += 1.5 * np.maximum(0, posterior_wall(position) + 0.5)  # bone resists
    away = -np.logaddexp(-6 * from_plug, -6 * from_ball / max(ball_radius, 1.0))  # a smooth minimum
    voxels = round(volume / grid.voxel_ml)
    return away < np.partition(away.ravel(), voxels)[voxels]


def canal_axis(volume: float, radius: float, side: int) -> Tube:
    """The axis, in the canal from its opening on, of a cylinder of `volume` ml that is `radius` mm thick."""
    length = np.clip(volume * 1000 / np.pi / radius**2, 2, 14)
    return Tube([np.multiply(CANAL.path[0], [side, 1, 1]), (side * (16 + length), -21, -36.5)], 0)


def tumor_contours(folder: Path) -> list[Contours]:
    """The tumors contoured in T2 that lie below `folder`, ordered by their files' names; unclear ones are left out.

    Raises:
        ValueError: there is none.
    """
    tumors = []
    for file in sorted([*folder.rglob("*contours*_T2w.json"), *folder.rglob("*_t2/contours.json")]):  # BIDS, TCIA
        with suppress(BadCase):
            tumors.append(read_contours(file))
    if not tumors:
        raise UserError(f"{folder} holds no contours of a tumor; expected the contours of Vestibular-Schwannoma-SEG")
    return tumors


def place_contours(
    rng: np.random.Generator, grid: Grid, position: np.ndarray, side: int, contours: Contours
) -> np.ndarray:
    """Mask of a real tumor, mirrored to `side` if need be, its lateral end in the internal auditory canal."""
    points = np.concatenate(contours)
    mirror = np.array([-side * np.sign(points[:, 0].mean()), 1, 1])  # x is positive on the left, `side` on the right
    outwards = np.abs(points[:, 0])
    anchor = points[outwards >= np.quantile(outwards, 0.85)].mean(0) * mirror
    width, depth, _ = np.ptp(points, axis=0)
    place = np.array([side * (rng.uniform(20, 25) + 0.2 * width), -20.5 - 0.18 * depth, -36.5])
    gap = sum((position[axis] - place[axis]) ** 2 for axis in range(3))
    at = np.array(np.unravel_index(gap.argmin(), gap.shape)) * grid.spacing_mm
    around = points * mirror - anchor
    at = np.clip(at, -around.min(0), 2 * grid.centre_mm - around.max(0))  # all of it within the field of view
    affine = np.diag([-grid.spacing_mm[0], -grid.spacing_mm[1], grid.spacing_mm[2], 1])
    return tumor_mask([loop * mirror - anchor + at for loop in contours], grid.shape, affine).astype(bool)


def displaced_brain(rng: np.random.Generator, grid: Grid, position: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mass effect: `position`, with what lay in the place of the tumor pushed aside."""
    centre = [round(c) for c in ndimage.center_of_mass(mask)]
    gaps = ((np.arange(n) - c) * mm for n, c, mm in zip(mask.shape, centre, grid.spacing_mm, strict=True))
    distance = np.sqrt(sum(gap**2 for gap in np.ix_(*gaps))).astype(np.float32)
    radius_mm = 5 + 1.5 * radius_of(mask.sum() * grid.voxel_ml)
    return push_aside(position, Site(tuple(centre), distance), radius_mm, rng.uniform(0.25, 0.45))


def with_tumor(rng: np.random.Generator, grid: Grid, anatomy: Anatomy, mask: np.ndarray) -> Anatomy:
    """The anatomy with the tumor in it, and with a cleft of CSF between it and the brain here and there."""
    labels = anatomy.labels.copy()
    outside_mm = ndimage.distance_transform_edt(~mask, sampling=grid.spacing_mm)
    cleft = (outside_mm < 0.5 + 0.7 * grid.smooth_field(rng, 7)) & (labels == LABEL["brain"])
    labels[cleft] = LABEL["csf"]
    labels[mask] = LABEL["tumor"]
    return replace(anatomy, labels=labels)


def compose_tumor(rng: np.random.Generator, grid: Grid, mask: np.ndarray) -> Schwannoma:
    """Solid, heterogeneous or cystic: loose (Antoni B) tissue holds more water than dense, cysts take up no agent."""
    kind = rng.choice(["solid", "heterogeneous", "cystic"], p=[0.4, 0.35, 0.25])
    spread = {"solid": 0.12, "heterogeneous": 0.4, "cystic": 0.25}[kind]
    cysts_above = {"solid": 2.6, "heterogeneous": 1.5, "cystic": 0.5}[kind]
    field = partial(grid.smooth_field, rng)
    texture = (0.5 * grid.speckle(rng, 0.7) + 0.5 * field(2.5) + 0.7 * field(5))[mask]
    loose = np.clip(rng.uniform(-0.1, 0.8) + spread * texture, 0, 0.9)
    cyst = 1 / (1 + np.exp((cysts_above - (field(6) + 0.5 * field(3))[mask]) / 0.12))
    uptake = rng.uniform(*AGENT_MMOL_L["tumor"]) * np.exp(0.2 * texture)
    return Schwannoma(mask, np.maximum(loose, 0.95 * cyst), uptake * (1 - 0.95 * cyst))


def image(
    rng: np.random.Generator, grid: Grid, anatomy: Anatomy, schwannoma: Schwannoma, varied: bool = False
) -> dict[str, np.ndarray]:
    """Both scans of a patient."""
    tissues = vary(rng)
    agents = {name: rng.uniform(*span) for name, span in AGENT_MMOL_L.items()}
    texture = texture_of(rng, grid, anatomy.labels)
    air = ndimage.gaussian_filter((anatomy.labels == LABEL["air"]).astype(np.float32), np.divide(4, grid.spacing_mm))
    off_resonance_hz = rng.uniform(5, 20) * grid.smooth_field(rng, 35) + rng.uniform(0, 60) * air
    paint = partial(signal, anatomy, schwannoma, tissues, agents)
    t2_sequence, tr_ms = t2_weighted(rng)
    t2 = paint(
        t2_sequence,
        2 * np.pi * off_resonance_hz * tr_ms / 1000,
        {"artery": rng.uniform(0, 0.2), "vein": rng.uniform(0.3, 1)},
    )
    if varied and rng.random() < 0.5:
        t2 = vary_contrast(rng, t2, anatomy, schwannoma)
    t2 *= pulsation(rng, grid, anatomy)
    t1 = paint(t1_weighted(rng), 0 * off_resonance_hz, {"artery": rng.uniform(0.9, 1.4), "vein": rng.uniform(0.5, 1)})
    wide, noisy = (2, 1.4) if varied else (1, 1)
    return {
        "t2": scan(
            rng,
            grid,
            t2 * texture,
            rng.uniform(0.15, 0.45 * wide),
            rng.uniform(0.6, 0.85),
            rng.uniform(0.03, 0.1 * noisy),
            wide,
        ),
        "t1ce": scan(
            rng, grid, t1 * texture**0.4, rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.75), rng.uniform(0.02, 0.06), wide
        ),
    }


def vary_contrast(rng: np.random.Generator, t2: np.ndarray, anatomy: Anatomy, schwannoma: Schwannoma) -> np.ndarray:
    """T2 with the brightness of every tissue drawn anew, and its structure kept.

    The brightness that a tumor has in one sequence then tells nothing: it may be darker than brain or nearly as bright
    as fluid, and so may mucosa, marrow, glands and fat. What is left to go by is shape and place.
    """
    at_rest = max(float(t2[anatomy.labels == LABEL["csf"]].mean()), 1e-6)
    levels = {name: at_rest * float(np.exp(rng.uniform(*np.log(span)))) for name, span in BRIGHTNESS.items()}
    levels["labyrinth"] = levels["csf"]
    factors = np.ones(len(STRUCTURES), np.float32)
    for name, level in levels.items():
        here = t2[anatomy.labels == LABEL[name]]
        factors[LABEL[name]] = level / max(float(np.median(here)), 1e-3 * at_rest) if len(here) else 1
    varied = t2 * factors[anatomy.labels]
    solid = levels["brain"] * (levels["csf"] / levels["brain"]) ** rng.uniform(*TUMOR_BRIGHTNESS)
    varied[schwannoma.mask] = repaint(t2[schwannoma.mask], schwannoma.cystic, solid, levels["csf"] / at_rest)
    return varied


def repaint(tumor: np.ndarray, cystic: np.ndarray, solid: float, fluid_factor: float) -> np.ndarray:
    """The tumor's signal, its least cystic part brought to `solid`, its cysts multiplied as all fluid is."""
    most_solid = np.quantile(cystic, 0.3)
    share = np.clip(cystic - most_solid, 0, 1)
    return tumor * ((1 - share) * solid / tumor[cystic <= most_solid].mean() + share * fluid_factor)


def vary(rng: np.random.Generator) -> dict[str, Tissue]:
    """`TISSUES_1_5T` of one patient: 3 % spread in proton density, 10 % in relaxation times."""
    factors = {name: rng.normal(1, [0.03, 0.1, 0.1]).tolist() for name in TISSUES_1_5T}
    return {name: Tissue(*(np.array(tissue) * factors[name]).tolist()) for name, tissue in TISSUES_1_5T.items()}


def t2_weighted(rng: np.random.Generator) -> tuple[MRSequence, float]:
    """A sequence as a function of tissue and phase, and its TR.

    CISS (193 patients of 242, 70 degrees), a restored turbo spin echo (49: TR 750 ms, TE 116 to 124 ms, turbo factor
    23), or FIESTA, which other scanners have.
    """
    kind = rng.choice(["ciss", "tse", "fiesta"], p=[0.7, 0.2, 0.1])
    if kind == "tse":
        sequence = partial(driven_equilibrium, tr_ms=750, te_ms=rng.uniform(116, 124), train_ms=rng.uniform(220, 280))
        return lambda tissue, phase: sequence(tissue) + 0 * phase, 750
    if kind == "fiesta":
        tr_ms = rng.uniform(4.5, 6.5)
        return partial(balanced_steady_state, tr_ms=tr_ms, te_ms=tr_ms / 2.2, flip_degrees=rng.uniform(45, 70)), tr_ms
    tr_ms = rng.uniform(9.4, 9.96)
    te_ms, flip_degrees = rng.uniform(4.23, 4.43), rng.uniform(60, 74)
    return partial(constructive_interference, tr_ms=tr_ms, te_ms=te_ms, flip_degrees=flip_degrees), tr_ms


def t1_weighted(rng: np.random.Generator) -> MRSequence:
    """A spoiled gradient echo: TR 11 ms (235 of 242 patients) or 13 ms, flips from the nominal 20 degrees down."""
    sequence = partial(spoiled_gradient_echo, tr_ms=rng.uniform(11, 13), flip_degrees=rng.uniform(10, 20))
    te_ms = rng.uniform(4, 4.76)
    return lambda tissue, phase: sequence(tissue) * np.exp(-te_ms / tissue.t2_ms) + 0 * phase


def signal(
    anatomy: Anatomy,
    schwannoma: Schwannoma,
    tissues: dict[str, Tissue],
    agents: dict[str, float],
    sequence: MRSequence,
    phase: np.ndarray,
    flow: dict[str, float],
) -> np.ndarray:
    """Signal of every voxel. `flow` multiplies that of moving blood: inflow brightens it, leaving early darkens it."""
    bins = np.linspace(-np.pi, np.pi, BINS, endpoint=False)
    names = {name: tissues[RELAXATION[name]] for name in STRUCTURES}
    names |= {name: tissues[name] for name in ("white", "pia")}
    table = np.array(
        [
            flow.get(name, 1) * sequence(with_gadolinium(tissue, agents.get(name, 0)), phase=bins)
            for name, tissue in names.items()
        ],
        np.float32,
    )
    column = np.round((phase / (2 * np.pi) + 0.5) * BINS).astype(np.int16) % BINS
    out = table[anatomy.labels, column]
    brain = anatomy.labels == LABEL["brain"]
    grey, white, pia = (table[row][column[brain]] for row in (LABEL["brain"], -2, -1))
    out[brain] += anatomy.white[brain] * (white - grey) + anatomy.fluid[brain] * (pia - grey)
    solid = blend(tissues["schwannoma"], tissues["cyst"], schwannoma.cystic)
    out[schwannoma.mask] = sequence(with_gadolinium(solid, schwannoma.agent), phase=phase[schwannoma.mask])
    return out


def texture_of(rng: np.random.Generator, grid: Grid, labels: np.ndarray) -> np.ndarray:
    """Factors around 1: trabeculae in marrow, lobules in fat and glands, bundles in muscle."""
    roughness = {
        "marrow": 0.5,
        "fat": 0.35,
        "gland": 0.3,
        "mucosa": 0.4,
        "muscle": 0.35,
        "brain": 0.05,
        "vein": 0.2,
        "csf": 0.06,
    }
    rough = np.array([roughness.get(name, 0) for name in STRUCTURES], np.float32)[labels]
    return np.clip(
        1
        + rough * (0.7 * grid.speckle(rng, 0.5) + 0.5 * grid.smooth_field(rng, 2.5) + 0.5 * grid.smooth_field(rng, 7)),
        0.1,
        2,
    )


def pulsation(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """Factors of at most 1: moving CSF loses signal, most of all near the brainstem."""
    right, anterior, _ = anatomy.position
    near = np.exp(-((right / 15) ** 2 + ((anterior + 22) / 18) ** 2))
    loss = rng.uniform(0.1, 0.8) * near * np.clip(0.5 + grid.smooth_field(rng, 7), 0, 1.4)
    return np.where(anatomy.labels == LABEL["csf"], 1 - np.clip(loss, 0, 0.9), np.float32(1))


def scan(
    rng: np.random.Generator,
    grid: Grid,
    signal: np.ndarray,
    blur: float,
    cutoff: float,
    noise: float,
    shading: float = 1,
) -> np.ndarray:
    """The image of `signal`: limited resolution, shading by the coil (times `shading`), noise, arbitrary units."""
    image = ndimage.gaussian_filter(signal, (blur, blur, rng.uniform(0.3, 0.6)))
    image *= np.exp(shading * rng.uniform(0.05, 0.25) * grid.smooth_field(rng, 70))
    image /= np.percentile(image, 95)
    receivers = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(noise)
    image = np.abs(band_limited(image + receivers[0] + 1j * receivers[1], cutoff, rng.uniform(0.02, 0.08)))
    units = float(np.exp(rng.uniform(np.log(200), np.log(1500))))
    return np.clip(np.rint(units * image), 0, 32767).astype(np.int16)


def band_limited(image: np.ndarray, cutoff: float, width: float) -> np.ndarray:
    """`image` measured in plane up to the share `cutoff` of the grid's highest frequency: edges blur and ring.

    `width` is how gently the window falls, in the same unit.
    """
    x, y = np.ix_(*(np.abs(fft.fftfreq(n)) * 2 for n in image.shape[:2]))
    window = 1 / ((1 + np.exp((x - cutoff) / width)) * (1 + np.exp((y - cutoff) / width)))
    return fft.ifft2(fft.fft2(image, axes=(0, 1)) * window[..., None].astype(np.float32), axes=(0, 1))
