import numpy as np
import pytest
from tissnet_components.phantom.physics import (
    TISSUES,
    TISSUES_1_5T,
    Tissue,
    balanced_steady_state,
    blend,
    constructive_interference,
    driven_equilibrium,
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


def test_a_balanced_echo_at_ninety_degrees_with_t1_equal_to_t2_gives_one_over_one_plus_e():
    half_life = Tissue(1, 10, 10)  # E1 = E2 = 1/2 after TR = 10 ln 2: (1 - 1/2) / (1 - 1/4)
    assert balanced_steady_state(half_life, 10 * LN2, te_ms=0, flip_degrees=90) == pytest.approx(2 / 3)


def test_half_a_turn_off_resonance_a_balanced_echo_falls_into_the_dark_band():
    half_life = Tissue(1, 10, 10)  # (1 - E1) / (1 + E1 E2) = 0.5 / 1.25
    assert balanced_steady_state(half_life, 10 * LN2, 0, 90, phase=np.pi) == pytest.approx(0.4)


@pytest.mark.parametrize("phase", [0.0, 1.0, np.pi / 2, 3.0])
def test_a_balanced_echo_agrees_with_alternating_pulses_repeated_until_steady(phase):
    flip, e1, e2 = np.deg2rad(70), np.exp(-10 / 900), np.exp(-10 / 80)
    turn = np.array([[np.cos(phase), np.sin(phase), 0], [-np.sin(phase), np.cos(phase), 0], [0, 0, 1]])
    m, sign = np.array([0.0, 0, 1]), 1
    for _ in range(2000):
        cos, sin = np.cos(flip), sign * np.sin(flip)
        m = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ m
        signal, sign = np.hypot(m[0], m[1]), -sign
        m = turn @ m * [e2, e2, e1] + [0, 0, 1 - e1]
    assert balanced_steady_state(Tissue(1, 900, 80), 10, 0, 70, phase) == pytest.approx(signal)


def test_constructive_interference_has_no_dark_band():
    tissue = Tissue(1, 10, 10)
    values = [constructive_interference(tissue, 10 * LN2, 0, 90, phase) for phase in (0, np.pi)]
    assert values == pytest.approx([2 / 3, 2 / 3])


def test_a_restored_spin_echo_after_one_half_life_of_each_gives_a_third():
    tissue = Tissue(1, 1000, 100)  # M = (1 - 1/2) / (1 - 1/4) = 2/3, and half of it is left at the echo
    tr = 100 * LN2 + 1000 * LN2
    assert driven_equilibrium(tissue, tr, te_ms=100 * LN2, train_ms=100 * LN2) == pytest.approx(1 / 3)


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


def test_the_contrasts_of_the_skull_base_rank_tissues_as_a_radiologist_expects():
    tissues = TISSUES_1_5T | {"enhancing": with_gadolinium(TISSUES_1_5T["schwannoma"], 0.3)}

    def ranked(sequence, *names):
        return sorted(names, key=lambda name: sequence(tissues[name]))

    names = ("bone", "muscle", "grey", "enhancing", "csf")
    assert ranked(lambda tissue: constructive_interference(tissue, 9.95, 4.43, 70), *names) == list(names)
    assert ranked(lambda tissue: driven_equilibrium(tissue, 750, 121, 250), *names) == list(names)
    t1 = ranked(lambda tissue: spoiled_gradient_echo(tissue, 11, 20), "csf", "grey", "white", "enhancing", "fat")
    assert t1 == ["csf", "grey", "white", "enhancing", "fat"]


def test_noise_alone_is_rayleigh_distributed():
    noise = rician(np.random.default_rng(0), np.zeros(200_000, np.float32), sigma=2)
    assert noise.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)


def test_without_noise_the_magnitude_remains():
    signal = np.array([-3, 0, 4], np.float32)
    np.testing.assert_array_equal(rician(np.random.default_rng(0), signal, sigma=0), [3, 0, 4])
