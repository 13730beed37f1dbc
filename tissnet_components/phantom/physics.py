"""What an MR scanner makes of a tissue: relaxation times, contrast agent, signal equations and noise.

Times are in milliseconds, concentrations in mmol/l. The functions work on numbers and on arrays alike, so a tissue may
have one T2 or one per voxel. Signals keep their sign (inverted magnetisation gives a negative one): add up the tissues
of a voxel first and take the magnitude afterwards, as nature does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Value = float | np.ndarray


class Tissue(NamedTuple):
    """Proton density relative to water, T1 and T2 in milliseconds; each a number or an array."""

    pd: Value
    t1_ms: Value
    t2_ms: Value


TISSUES = {
    "white": Tissue(0.70, 1084, 69),
    "grey": Tissue(0.82, 1820, 99),
    "csf": Tissue(1.00, 4300, 2000),
    "blood": Tissue(0.85, 1932, 275),
    "dura": Tissue(0.60, 1000, 20),
    "oedema": Tissue(0.87, 1950, 240),
    "tumor": Tissue(0.85, 1850, 140),
    "fluid": Tissue(0.94, 2600, 320),
}
"""Tissues at 3 T.

T1 and T2 of white matter, grey matter, blood: Stanisz et al. 2005, doi 10.1002/mrm.20605. Of CSF: Rooney et al. 2007,
doi 10.1002/mrm.21122 (T1); Spijkerman et al. 2018, doi 10.1007/s10334-017-0659-3 (T2). Densities: Tofts, Quantitative
MRI of the Brain, 2003. Solid tumor, white matter full of oedema, and the fluid of a necrosis or cyst differ so much
between patients that no one number is right: theirs are round values of the size that relaxometry of gliomas finds
(Oh et al. 2005, doi 10.1002/jmri.20335; Badve et al. 2017, doi 10.3174/ajnr.A5035), chosen so that the contrasts come
close to those of real patients. Dura: round values, dark in T2.
"""

TISSUES_1_5T = {
    "air": Tissue(0.0, 1000, 100),
    "bone": Tissue(0.1, 200, 0.5),
    "white": Tissue(0.70, 884, 72),
    "grey": Tissue(0.82, 1124, 95),
    "csf": Tissue(1.00, 4300, 2000),
    "blood": Tissue(0.85, 1441, 290),
    "nerve": Tissue(0.70, 815, 77),
    "muscle": Tissue(0.80, 1008, 44),
    "fat": Tissue(0.75, 288, 165),
    "marrow": Tissue(0.60, 288, 165),
    "gland": Tissue(0.85, 900, 75),
    "mucosa": Tissue(0.90, 1300, 110),
    "dura": Tissue(0.60, 900, 20),
    "schwannoma": Tissue(0.87, 1350, 130),
    "cyst": Tissue(0.98, 3300, 1200),
    "pia": Tissue(0.95, 3500, 1000),
}
"""Tissues at 1.5 T.

T1 and T2 of white matter, grey matter, blood, (optic) nerve, muscle: Stanisz et al. 2005, doi 10.1002/mrm.20605. Of fat
and fatty marrow: Gold et al. 2004, doi 10.2214/ajr.183.2.1830343. CSF as at 3 T. Cortical bone gives no signal at these
echo times (T2 below 1 ms: Techawiboonwong et al. 2008, doi 10.1148/radiol.2481071995). Gland, mucosa, dura, schwannoma,
the fluid of its cysts, pia (the CSF and vessels of fissures), densities of fat and marrow: round values, chosen so that
the contrasts come close to those of real patients.
"""

GADOLINIUM_R1 = 4.0
"""Longitudinal relaxivity in l/(mmol s), 3 T, plasma: between gadoterate (3.0) and gadobutrol (5.0). Szomolanyi et al.
2019, doi 10.1097/RLI.0000000000000577."""

GADOLINIUM_R2 = 5.0
"""Transverse relaxivity in l/(mmol s), 3 T, plasma. Rohrer et al. 2005, doi 10.1097/01.rli.0000184756.66360.d3."""


def blend(first: Tissue, second: Tissue, share: Value) -> Tissue:
    """Tissue whose water is `share` of `second` and exchanges fast: densities and relaxation *rates* mix linearly."""
    density = (1 - share) * first.pd + share * second.pd
    r1 = (1 - share) / first.t1_ms + share / second.t1_ms
    r2 = (1 - share) / first.t2_ms + share / second.t2_ms
    return Tissue(density, 1 / r1, 1 / r2)


def with_gadolinium(tissue: Tissue, concentration: Value) -> Tissue:
    """Tissue with `concentration` mmol/l of contrast agent, which adds to both relaxation rates."""
    r1 = 1 / tissue.t1_ms + GADOLINIUM_R1 * concentration / 1000
    r2 = 1 / tissue.t2_ms + GADOLINIUM_R2 * concentration / 1000
    return Tissue(tissue.pd, 1 / r1, 1 / r2)


def spin_echo(tissue: Tissue, tr_ms: float, te_ms: float) -> Value:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2): T1-weighted when both times are short, T2-weighted when both are long."""
    return tissue.pd * (1 - np.exp(-tr_ms / tissue.t1_ms)) * np.exp(-te_ms / tissue.t2_ms)


def spoiled_gradient_echo(tissue: Tissue, tr_ms: float, flip_degrees: float) -> Value:
    """Ernst's steady state, PD sin(a) (1 - E1) / (1 - E1 cos(a)), with an echo time too short to matter."""
    flip, e1 = np.deg2rad(flip_degrees), np.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * np.sin(flip) * (1 - e1) / (1 - e1 * np.cos(flip))


def balanced_steady_state(tissue: Tissue, tr_ms: float, te_ms: float, flip_degrees: float, phase: Value = 0.0) -> Value:
    """Balanced SSFP (TrueFISP, FIESTA) with RF pulses of alternating sign (Freeman and Hill 1971; Hargreaves 2012).

    `phase` is what off-resonance turns the magnetisation by in one TR, in radians. 0 gives the familiar
    PD sin(a) (1 - E1) / (1 - (E1 - E2) cos(a) - E1 E2) exp(-TE/T2); near pi lies the dark band.
    """
    flip, theta = np.deg2rad(flip_degrees), phase + np.pi
    e1, e2 = np.exp(-tr_ms / tissue.t1_ms), np.exp(-tr_ms / tissue.t2_ms)
    transverse = np.sqrt(1 - 2 * e2 * np.cos(theta) + e2**2)
    rest = (1 - e1 * np.cos(flip)) * (1 - e2 * np.cos(theta)) - e2 * (e1 - np.cos(flip)) * (e2 - np.cos(theta))
    return tissue.pd * np.sin(flip) * (1 - e1) * transverse / rest * np.exp(-te_ms / tissue.t2_ms)


def constructive_interference(
    tissue: Tissue, tr_ms: float, te_ms: float, flip_degrees: float, phase: Value = 0.0
) -> Value:
    """CISS: the maximum of two balanced acquisitions, with and without alternating pulses; faint bands are left."""
    alternating = balanced_steady_state(tissue, tr_ms, te_ms, flip_degrees, phase)
    return np.maximum(alternating, balanced_steady_state(tissue, tr_ms, te_ms, flip_degrees, phase + np.pi))


def driven_equilibrium(tissue: Tissue, tr_ms: float, te_ms: float, train_ms: float) -> Value:
    """Turbo spin echo that restores its magnetisation at the end (RESTORE, DRIVE): fluid is bright at short TR.

    With M before each excitation, M exp(-train/T2) is turned back and recovers in what is left of TR:
    M = (1 - E) / (1 - E exp(-train/T2)), E = exp(-(TR - train)/T1); the signal is PD M exp(-TE/T2).
    """
    recovery = np.exp(-(tr_ms - train_ms) / tissue.t1_ms)
    steady = (1 - recovery) / (1 - recovery * np.exp(-train_ms / tissue.t2_ms))
    return tissue.pd * steady * np.exp(-te_ms / tissue.t2_ms)


def inversion_recovery(tissue: Tissue, tr_ms: float, te_ms: float, ti_ms: float) -> Value:
    """PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), signed: FLAIR when TI nulls CSF."""
    recovered = 1 - 2 * np.exp(-ti_ms / tissue.t1_ms) + np.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * recovered * np.exp(-te_ms / tissue.t2_ms)


def nulling_inversion_time(t1_ms: Value, tr_ms: float) -> float:
    """TI in milliseconds at which `inversion_recovery` of a tissue is zero: T1 (ln 2 - ln(1 + exp(-TR/T1)))."""
    return float(t1_ms * (np.log(2) - np.log1p(np.exp(-tr_ms / t1_ms))))


def rician(rng: np.random.Generator, signal: np.ndarray, sigma: float) -> np.ndarray:
    """Magnitude of `signal` after Gaussian noise of standard deviation `sigma` in both receiver channels."""
    real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(signal + real, imaginary)
