import numpy as np
import pytest

from tissnet_components.datasets.mr_physics import (
    TISSUES,
    Tissue,
    blend,
    inversion_recovery,
    nulling_inversion_time,
    rician,
    spin_echo,
    spoiled_gradient_echo,
    with_gadolinium,
)

LN2 = np.log(2)


def test_a_spin_echo_recovers_by_half_and_decays_by_half_after_one_half_life_of_each():
    tissue = Tissue(0.8, 1000, 100)
    assert spin_echo(tissue, tr_ms=1000 * LN2, te_ms=100 * LN2) == pytest.approx(0.8 / 2 / 2)


def test_a_spoiled_gradient_echo_at_ninety_degrees_is_saturation_recovery():
    assert spoiled_gradient_echo(Tissue(1, 1000, 100), tr_ms=1000 * LN2, flip_degrees=90) == pytest.approx(0.5)


def test_a_spoiled_gradient_echo_agrees_with_pulses_repeated_until_steady():
    e1, flip, mz = np.exp(-25 / 900), np.deg2rad(28), 1.0
    for _ in range(1000):
        signal = mz * np.sin(flip)
        mz = 1 - (1 - mz * np.cos(flip)) * e1
    assert spoiled_gradient_echo(Tissue(1, 900, 80), tr_ms=25, flip_degrees=28) == pytest.approx(signal)


def test_an_inversion_without_waiting_turns_the_signal_over():
    assert inversion_recovery(Tissue(1, 10, 100), tr_ms=1e6, te_ms=0, ti_ms=0) == pytest.approx(-1)


def test_after_a_long_repetition_the_null_comes_at_t1_ln_2():
    assert nulling_inversion_time(4300, tr_ms=1e6) == pytest.approx(4300 * LN2)


def test_the_nulling_inversion_time_nulls_csf_also_after_a_short_repetition():
    ti = nulling_inversion_time(TISSUES["csf"].t1_ms, tr_ms=8000)
    assert inversion_recovery(TISSUES["csf"], tr_ms=8000, te_ms=110, ti_ms=ti) == pytest.approx(0, abs=1e-12)
    assert inversion_recovery(TISSUES["white"], tr_ms=8000, te_ms=110, ti_ms=ti) > 0.05


def test_half_a_millimole_of_gadolinium_adds_two_per_second_to_r1_and_two_and_a_half_to_r2():
    enhanced = with_gadolinium(Tissue(0.8, 1000, 100), 0.5)  # 1 + 4 x 0.5 = 3 /s, 10 + 5 x 0.5 = 12.5 /s
    assert enhanced == pytest.approx((0.8, 1000 / 3, 80))


def test_half_and_half_mixes_rates_rather_than_times():
    assert blend(Tissue(0.6, 1000, 50), Tissue(1.0, 3000, 150), 0.5) == pytest.approx((0.8, 1500, 75))


def test_a_tissue_may_vary_from_voxel_to_voxel():
    t2 = np.array([50.0, 100.0])
    np.testing.assert_allclose(
        spin_echo(Tissue(1, 1000, t2), 5000, 100),
        [spin_echo(Tissue(1, 1000, 50), 5000, 100), spin_echo(Tissue(1, 1000, 100), 5000, 100)],
    )


def test_the_contrasts_rank_tissues_as_a_radiologist_expects():
    def ranked(sequence, *names):
        return sorted(names, key=lambda name: sequence(TISSUES[name]))

    ti = nulling_inversion_time(TISSUES["csf"].t1_ms, 9000)
    t1 = ranked(lambda tissue: spin_echo(tissue, 550, 10), "white", "grey", "csf")
    t2 = ranked(lambda tissue: spin_echo(tissue, 4500, 80), "white", "grey", "oedema", "csf")
    flair = ranked(lambda tissue: inversion_recovery(tissue, 9000, 115, ti), "white", "grey", "oedema", "csf")
    assert t1 == ["csf", "grey", "white"]
    assert t2 == ["white", "grey", "oedema", "csf"]
    assert flair == ["csf", "white", "grey", "oedema"]


def test_noise_alone_is_rayleigh_distributed():
    noise = rician(np.random.default_rng(0), np.zeros(200_000, np.float32), sigma=2)
    assert noise.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)


def test_without_noise_the_magnitude_remains():
    signal = np.array([-3, 0, 4], np.float32)
    np.testing.assert_array_equal(rician(np.random.default_rng(0), signal, sigma=0), [3, 0, 4])
