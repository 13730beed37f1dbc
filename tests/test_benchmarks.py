"""The benchmark's table; the timings themselves are for `make bench`."""

import torch

from benchmarks.__main__ import VARIANTS, build, table


def test_the_table_gives_medians_and_how_much_faster_than_the_first_variant():
    times = {"slow": {"inference": [4.0, 2.0, 9.0]}, "fast": {"inference": [1.0, 1.0, 8.0]}}
    assert "| slow | 4.00 s (1.00x) |" in table(times)
    assert "| fast | 1.00 s (4.00x) |" in table(times)


def test_every_variant_is_built_and_runs_one_iteration():
    tiny = {"patch_size": [64, 64, 16], "widths": [2, 2, 2, 2, 2], "discriminator_channels": 2}
    for settings in VARIANTS.values():
        actions = build({**settings, **tiny})
        actions["inference of a patch"]()
        assert torch.isfinite(actions["training iteration"]()["loss"])
