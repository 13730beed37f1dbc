from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from cohort import oblique_affine
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, InvertibleTransform, Spacingd
from tissnet_components.inversion import AFFINE_GRID, GRID_SAMPLE, InvertTogetherd, sample_where_not_zero
from tissnet_components.transforms import NormalizeBrain, NormalizeBraind

OBLIQUE = oblique_affine((0.9, 1.1, 5))


def test_what_was_cropped_before_normalising_can_be_put_back():
    volume = torch.zeros(1, 8, 8, 8)
    volume[:, 2:6, 2:6, 2:6] = torch.arange(1, 65).reshape(4, 4, 4)
    crop = CropForegroundd("image", source_key="image", select_fn=lambda image: image > -1, allow_smaller=True)
    preprocessing = Compose([NormalizeBraind("image", 0, 100), crop])
    data = preprocessing({"image": MetaTensor(volume, affine=torch.from_numpy(OBLIQUE))})
    assert data["image"].shape[1:] == (4, 4, 4)
    maps = {"synthetic": data["image"].clone(), "fine": data["image"].clone()}
    restored = InvertTogetherd(list(maps), preprocessing, "image", {"synthetic": -1})({**data, **maps})
    torch.testing.assert_close(restored["synthetic"].as_tensor(), NormalizeBrain(0, 100)(volume))
    assert restored["fine"][volume == 0].unique().tolist() == [0]
    np.testing.assert_allclose(restored["synthetic"].affine, OBLIQUE)


def test_maps_inverted_together_are_what_they_are_alone():
    spacing = Spacingd("image", pixdim=(0.7, 1.3, 2.0), mode="bilinear")
    crop = CropForegroundd("image", source_key="image", select_fn=lambda image: image > 0.2, allow_smaller=True)
    preprocessing = Compose([spacing, crop])
    data = preprocessing({"image": MetaTensor(torch.rand(2, 9, 8, 7), affine=torch.from_numpy(OBLIQUE))})
    maps = {
        name: MetaTensor(torch.rand(count, *data["image"].shape[1:])) for name, count in (("fine", 1), ("error", 2))
    }
    alone = Invertd(list(maps), preprocessing, orig_keys="image", nearest_interp=False)({**data, **maps})
    keys = ["fine", "absent", "error"]
    together = InvertTogetherd(keys, preprocessing, "image", allow_missing_keys=True)({**data, **maps})
    assert together.keys() == alone.keys()
    for name in maps:
        torch.testing.assert_close(together[name].as_tensor(), alone[name].as_tensor())
        np.testing.assert_array_equal(together[name].affine, alone[name].affine)
        assert together[name].meta.keys() == alone[name].meta.keys()


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("box", ["inside", "at an end", "everywhere", "nowhere"])
def test_where_all_is_zero_nothing_is_sampled_and_the_rest_is_bit_by_bit_pytorchs(box, align_corners, padding):
    sides = {"inside": (3, 6), "at an end": (0, 4), "everywhere": (0, 9), "nowhere": (0, 0)}[box]
    volume = torch.zeros(1, 2, 9, 9, 9)
    part = (slice(None), slice(None), *[slice(*sides)] * 3)
    volume[part] = torch.rand_like(volume[part])
    oblique = torch.tensor([[[1.1, 0.05, 0, 0.1], [0, -0.9, 0.1, 0], [0.02, 0, 1.3, -0.2]]])
    size = [1, 2, 17, 13, 15]
    grid = torch.nn.functional.affine_grid(oblique, size, align_corners=align_corners)
    settings = {"mode": "bilinear", "padding_mode": padding, "align_corners": align_corners}
    sampled = torch.nn.functional.grid_sample(volume, grid, **settings)
    assert torch.equal(sample_where_not_zero(volume, (oblique, size), **settings), sampled)


def test_while_maps_are_brought_back_other_threads_have_pytorchs_sampling():
    spacing = Spacingd("image", pixdim=(0.7, 1.3, 2.0), mode="bilinear")
    grid = partial(torch.nn.functional.affine_grid, torch.eye(3, 4)[None], [1, 1, 2, 2, 2], align_corners=False)
    meanwhile = []

    class Elsewhere(InvertibleTransform):
        def __call__(self, data):
            return data

        def inverse(self, data):
            with ThreadPoolExecutor(1) as pool:
                meanwhile.append(pool.submit(grid).result())
            return data

    preprocessing = Compose([spacing, Elsewhere()])
    data = preprocessing({"image": MetaTensor(torch.rand(1, 9, 8, 7), affine=torch.from_numpy(OBLIQUE))})
    InvertTogetherd("fine", preprocessing, "image")({**data, "fine": MetaTensor(data["image"].clone())})
    assert len(meanwhile) == 1 and torch.equal(meanwhile[0], grid())


def test_maps_of_several_patients_at_once_are_as_they_are_alone_and_pytorchs_sampling_is_left_as_it_was():
    spacing = Spacingd("image", pixdim=(0.7, 1.3, 2.0), mode="bilinear")
    data = spacing({"image": MetaTensor(torch.rand(1, 9, 8, 7), affine=torch.from_numpy(OBLIQUE))})
    maps = {**data, "fine": MetaTensor(data["image"].clone())}
    back = InvertTogetherd("fine", Compose([spacing]), "image")
    alone = back(maps)["fine"]
    with ThreadPoolExecutor(4) as pool:
        inverted = [pool.submit(back, maps) for _ in range(50)]
    assert all(torch.equal(one.result()["fine"], alone) for one in inverted)
    assert torch.nn.functional.grid_sample is GRID_SAMPLE and torch.nn.functional.affine_grid is AFFINE_GRID
