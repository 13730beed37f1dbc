"""One simulated glioma patient: a tumor grown in a deformed atlas, and the four contrasts of BraTS imaged from it.

Arrays have shape (X, Y, Z) on a `Grid`; fractions and severities lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from tissnet_components.phantom.atlas import (
    ATLAS_ORIGIN,
    Anatomy,
    Grid,
    anatomy_at,
    brain_mask,
    deformed_positions,
    load_atlas,
)
from tissnet_components.phantom.physics import (
    TISSUES,
    Tissue,
    Value,
    blend,
    inversion_recovery,
    nulling_inversion_time,
    rician,
    spin_echo,
    spoiled_gradient_echo,
    with_gadolinium,
)

Sequence = Callable[[Tissue], Value]
GROWTH_SPACING_MM = 2


@dataclass(frozen=True)
class Site:
    """Where a tumor begins: a voxel, and the distance of all voxels from it."""

    voxel: tuple[int, ...]
    distance_mm: np.ndarray


@dataclass(frozen=True)
class Glioma:
    """One tumor."""

    core: np.ndarray  # fraction, enhancing or not
    enhancing: np.ndarray  # fraction, part of the core
    fluid: np.ndarray  # how liquid the rest of the core is
    oedema: np.ndarray  # severity


class Compartment(NamedTuple):
    """A tissue, the fraction of each voxel that it fills, and its contrast agent in mmol/l at the second T1 scan."""

    fraction: np.ndarray
    tissue: Tissue
    agent: Value


def glioma_patient(rng: np.random.Generator, spacing: float) -> dict[str, np.ndarray]:
    """Simulate one patient.

    Returns:
        ``t1``, ``t1ce``, ``t2`` and ``flair`` (int16, 0 outside the brain and only there), and ``seg`` (uint8:
        1 necrotic and non-enhancing core, 2 oedema, 4 enhancing core).
    """
    grid = Grid(spacing)
    position = deformed_positions(rng, grid)
    brain = brain_mask(position)
    site = choose_site(rng, grid, position)
    whole_ml = float(np.exp(rng.uniform(np.log(16), np.log(160))))
    core_ml = whole_ml * rng.uniform(0.2, 0.65)
    position = push_aside(position, site, 8 + 1.6 * radius_of(core_ml), rng.uniform(0.15, 0.4))
    anatomy = anatomy_at(position, brain, grid, rng.uniform(1, 2.1))
    glioma = grow_glioma(rng, grid, anatomy, site, core_ml, whole_ml)
    tissues = vary(rng)
    compartments = compose(rng, grid, anatomy, glioma, tissues)
    images = {
        "t1": measure_signal(compartments, t1_weighted(rng), flow_void=0.3),
        "t1ce": measure_signal(after_injection(compartments), t1_weighted(rng), flow_void=0.3),
        "t2": measure_signal(compartments, t2_weighted(rng), flow_void=0.9),
        "flair": measure_signal(compartments, flair(rng, tissues["csf"]), flow_void=0.9),
    }
    scans = {modality: scan(rng, grid, brain, signal) for modality, signal in images.items()}
    return {**scans, "seg": label_map(glioma, anatomy)}


def radius_of(volume_ml: float) -> float:
    """Radius in mm of a ball."""
    return (volume_ml * 1000 * 3 / 4 / np.pi) ** (1 / 3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(x / 2)


def choose_site(rng: np.random.Generator, grid: Grid, atlas_position: np.ndarray) -> Site:
    """A voxel in the white matter of a hemisphere, where most gliomas begin."""
    white = load_atlas().white
    right, anterior, superior = np.ix_(*(np.arange(n) - o for n, o in zip(white.shape, ATLAS_ORIGIN, strict=True)))
    hemispheres = (np.abs(right) > 14) & (superior > 0) & (superior < 55) & (anterior > -75)
    candidates = np.argwhere((white > 0.8) & hemispheres)
    target = candidates[rng.integers(len(candidates))]
    gap = sum((atlas_position[axis] - target[axis]) ** 2 for axis in range(3))
    voxel = np.unravel_index(gap.argmin(), gap.shape)
    squared = sum((points - v * grid.spacing) ** 2 for points, v in zip(grid.points_mm, voxel, strict=True))
    return Site(voxel, np.sqrt(squared).astype(np.float32))


def push_aside(atlas_position: np.ndarray, site: Site, radius_mm: float, strength: float) -> np.ndarray:
    """Mass effect: around the tumor, each voxel shows what lay nearer to its centre before; `strength` is below 1."""
    pull = strength * np.exp(-((site.distance_mm / np.float32(radius_mm)) ** 2))
    centre = np.array([axis[site.voxel] for axis in atlas_position]).reshape(3, 1, 1, 1)
    return atlas_position + pull * (centre - atlas_position)


def grow_glioma(
    rng: np.random.Generator, grid: Grid, anatomy: Anatomy, site: Site, core_ml: float, whole_ml: float
) -> Glioma:
    """A tumor whose core fills `core_ml`, and core and oedema `whole_ml`.

    Four of five are high-grade: an enhancing rim, ragged and with gaps, around necrosis. The others hardly enhance.
    """
    high_grade = rng.random() < 0.8
    depth_mm = grow_core(rng, grid, anatomy, site, core_ml)
    core = sigmoid(depth_mm / 0.7)
    ragged_mm = depth_mm + 2.5 * grid.smooth_field(rng, 12) + 1.5 * grid.smooth_field(rng, 6)
    rim_mm = rng.uniform(0.12, 0.45) * float(depth_mm.max()) * np.exp(0.35 * grid.smooth_field(rng, 15))
    gaps_below = -1.2 if high_grade else rng.uniform(1.2, 2.2)
    enhancing = sigmoid((rim_mm - ragged_mm) / 0.6) * sigmoid((grid.smooth_field(rng, 12) - gaps_below) / 0.15)
    liquid = (0.7 if high_grade else 0.25) + 0.4 * grid.smooth_field(rng, 10) + 0.2 * grid.smooth_field(rng, 5)
    oedema = grow_oedema(rng, grid, anatomy, core, whole_ml)
    return Glioma(core, core * enhancing, np.clip(liquid, 0, 1), oedema)


def grow_core(rng: np.random.Generator, grid: Grid, anatomy: Anatomy, site: Site, volume_ml: float) -> np.ndarray:
    """Depth in mm below the surface of a lobulated core, negative outside. It spares CSF and rarely passes the falx."""
    lobulation = sum(a * grid.smooth_field(rng, length) for a, length in ((0.28, 28), (0.2, 13), (0.07, 6)))
    other_side_mm = np.maximum(0, -anatomy.right_mm * np.sign(anatomy.right_mm[site.voxel]))
    radius = site.distance_mm * np.exp(lobulation) * (1 + 0.7 * anatomy.csf) + other_side_mm / 4
    radius = ndimage.gaussian_filter(radius, 0.7 / grid.spacing)
    voxels = int(volume_ml / grid.voxel_ml)
    return np.partition(radius[anatomy.brain], voxels)[voxels] - radius


def grow_oedema(
    rng: np.random.Generator, grid: Grid, anatomy: Anatomy, core: np.ndarray, volume_ml: float
) -> np.ndarray:
    """Severity of the oedema; where it exceeds one half, it and the core fill `volume_ml`.

    Fisher's equation du/dt = div(D grad u) + r u (1 - u), the usual model of glioma infiltration (Swanson et al. 2000,
    doi 10.1046/j.1365-2184.2000.00177.x), starts from the core. D and r are ten times larger in white than in grey
    matter, and zero in CSF, so that fingers reach along the white matter. It always runs on voxels of 2 mm.
    """
    resample = partial(ndimage.zoom, order=1, grid_mode=True, mode="nearest")
    ease = (anatomy.white + 0.1 * anatomy.grey) * np.exp(0.5 * grid.smooth_field(rng, 30))
    ease = np.clip(resample(ease, grid.spacing / GROWTH_SPACING_MM), 0, 1.3)
    u = resample(core, grid.spacing / GROWTH_SPACING_MM)
    for _ in range(400):
        if np.count_nonzero(u > 0.4) * GROWTH_SPACING_MM**3 / 1000 >= volume_ml:
            break
        u = np.clip(u + 0.12 * diffusion(u, ease) + 0.1 * ease * u * (1 - u), 0, 1)
    back = [n / m for n, m in zip(grid.shape, u.shape, strict=True)]
    return sigmoid((resample(u, back) - 0.4) / 0.1)


def diffusion(u: np.ndarray, conductivity: np.ndarray) -> np.ndarray:
    """div(D grad u) in voxel units; a face conducts as its two voxels in series do, and nothing leaves the volume."""
    change = np.zeros_like(u)
    for axis in range(u.ndim):
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        series = 2 * conductivity[before] * conductivity[after]
        flux = series / (conductivity[before] + conductivity[after] + np.float32(1e-9)) * (u[after] - u[before])
        change[before] += flux
        change[after] -= flux
    return change


def label_map(glioma: Glioma, anatomy: Anatomy) -> np.ndarray:
    """The labels of BraTS, with the outline of the oedema as smooth as an annotator draws it."""
    oedema = ndimage.gaussian_filter(glioma.oedema * (1 - anatomy.csf), 0.6) > 0.45
    core = np.where(glioma.enhancing > 0.5 * glioma.core, 4, 1)
    return (np.where(glioma.core > 0.5, core, 2 * oedema) * anatomy.brain).astype(np.uint8)


def vessels(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """Fraction of blood: winding vessels in the sulci, the sagittal sinus, choroid plexus in the ventricles.

    Two random fields vanish together along random curves: those are the vessels.
    """
    radius_mm, length_mm = max(1.0, 0.7 * grid.spacing), 14
    off_axis = grid.smooth_field(rng, length_mm) ** 2 + grid.smooth_field(rng, length_mm) ** 2
    tubes = np.exp(-off_axis * (length_mm / radius_mm / 2) ** 2) / radius_mm
    near_csf = np.clip(2 * ndimage.gaussian_filter(anatomy.csf, 2 / grid.spacing), 0, 1)
    midline = np.exp(-((anatomy.right_mm / 2.5) ** 2)) * (anatomy.superior_mm > 10)
    sinus = midline * np.exp(-((anatomy.depth_mm / 4) ** 2))
    choroid = anatomy.ventricles * (np.abs(anatomy.right_mm) > 6) * sigmoid((grid.smooth_field(rng, 6) - 1) / 0.1)
    return np.clip(0.8 * tubes * near_csf + 0.6 * sinus + 0.5 * choroid, 0, 0.9) * anatomy.brain


def dura_remnants(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """Fraction of dura, which skull stripping leaves on the surface here and there."""
    patches = sigmoid(3 * grid.smooth_field(rng, 18) - 2)
    return 0.7 * patches * np.exp(-((anatomy.depth_mm / 2.5) ** 2)) * anatomy.brain


def white_matter_lesions(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """Severity of age-related hyperintensities, caps at the ventricles and scattered spots, which are not tumor."""
    ventricles = anatomy.ventricles > 0.5
    gap_mm = ndimage.distance_transform_edt(~ventricles, sampling=grid.spacing) if ventricles.any() else np.inf
    burden = rng.beta(1.2, 2.5)
    caps = 1.4 * burden * np.exp(np.float32(-gap_mm / 3)) * (0.6 + 0.3 * grid.smooth_field(rng, 14))
    spots = sigmoid((grid.smooth_field(rng, 8) - 3.4 + 1.2 * burden) / 0.15)
    return np.clip(caps + spots, 0, 1) * anatomy.white


def vary(rng: np.random.Generator) -> dict[str, Tissue]:
    """`TISSUES` of one patient: 2 % spread in proton density, 5 % in relaxation times."""
    factors = {name: rng.normal(1, [0.02, 0.05, 0.05]).tolist() for name in TISSUES}
    return {name: Tissue(*(np.array(tissue) * factors[name]).tolist()) for name, tissue in TISSUES.items()}


def compose(
    rng: np.random.Generator, grid: Grid, anatomy: Anatomy, glioma: Glioma, tissues: dict[str, Tissue]
) -> list[Compartment]:
    """What every voxel is made of; blood comes last."""
    field = partial(grid.smooth_field, rng)
    lesions = white_matter_lesions(rng, grid, anatomy)
    water = glioma.oedema * np.clip(0.72 + 0.22 * field(14) + 0.13 * field(6), 0.15, 1)
    solid = blend(tissues["tumor"], tissues["oedema"], np.clip(0.1 + 0.3 * field(6) + 0.3 * field(13), -0.5, 1))
    fluid = blend(tissues["fluid"], tissues["csf"], rng.uniform(0.1, 0.7))
    uptake = rng.uniform(0.04, 0.16) * np.exp(0.5 * field(8))
    blood, dura = vessels(rng, grid, anatomy), dura_remnants(rng, grid, anatomy)
    tumor = glioma.core * (1 - blood)
    healthy = (1 - glioma.core) * (1 - blood) * (1 - dura) * (1 + 0.03 * field(7))
    rim = glioma.enhancing * (1 - blood)
    return [
        Compartment(anatomy.csf * healthy, tissues["csf"], 0),
        Compartment(anatomy.grey * healthy, blend(tissues["grey"], tissues["oedema"], 0.4 * water), 0),
        Compartment(
            anatomy.white * healthy, blend(tissues["white"], tissues["oedema"], np.maximum(water, 0.6 * lesions)), 0
        ),
        Compartment(rim, solid, uptake),
        Compartment(tumor - rim, blend(solid, fluid, glioma.fluid), 0.03 * uptake),
        Compartment(dura * (1 - glioma.core) * (1 - blood), tissues["dura"], 0.3),
        Compartment(blood, tissues["blood"], rng.uniform(0.5, 1)),
    ]


def after_injection(compartments: list[Compartment]) -> list[Compartment]:
    """The same with the contrast agent's effect on the relaxation times."""
    return [part._replace(tissue=with_gadolinium(part.tissue, part.agent)) for part in compartments]


def t1_weighted(rng: np.random.Generator) -> Sequence:
    """A spin echo or a spoiled gradient echo, as scanners differ."""
    if rng.random() < 0.5:
        return partial(spin_echo, tr_ms=rng.uniform(450, 650), te_ms=rng.uniform(8, 14))
    return partial(spoiled_gradient_echo, tr_ms=rng.uniform(18, 30), flip_degrees=rng.uniform(22, 32))


def t2_weighted(rng: np.random.Generator) -> Sequence:
    return partial(spin_echo, tr_ms=rng.uniform(3500, 6000), te_ms=rng.uniform(65, 95))


def flair(rng: np.random.Generator, csf: Tissue) -> Sequence:
    """Inversion recovery at the inversion time that nulls this patient's CSF, missed by about two percent."""
    tr_ms = rng.uniform(8000, 10000)
    ti_ms = nulling_inversion_time(csf.t1_ms, tr_ms) * rng.normal(1, 0.02)
    return partial(inversion_recovery, tr_ms=tr_ms, te_ms=rng.uniform(100, 145), ti_ms=ti_ms)


def measure_signal(compartments: list[Compartment], sequence: Sequence, flow_void: float) -> np.ndarray:
    """Signed signal of all compartments; blood, the last, loses the share `flow_void` by leaving before the echo."""
    *rest, blood = (part.fraction * np.float32(sequence(part.tissue)) for part in compartments)
    return sum(rest) + (1 - flow_void) * blood


def scan(rng: np.random.Generator, grid: Grid, brain: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """The image of `signal`: blurred by thick slices, shaded by the coil, noisy, in arbitrary units, skull-stripped."""
    slice_blur_mm = rng.choice([0.5, 1.2, 2.0], p=[0.4, 0.4, 0.2])
    image = ndimage.gaussian_filter(np.float32(signal), np.array([0.45, 0.45, slice_blur_mm]) / grid.spacing)
    image *= np.exp(0.09 * grid.smooth_field(rng, 90))
    image /= np.percentile(np.abs(image[brain]), 90)
    units = float(np.exp(rng.uniform(np.log(200), np.log(3000))))
    image = units * rician(rng, image, rng.uniform(0.01, 0.03))
    return np.where(brain, np.clip(np.rint(image), 1, 32767), 0).astype(np.int16)
