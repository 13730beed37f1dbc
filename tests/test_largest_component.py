import pytest
import torch
from monai.data import MetaTensor
from tissnet_components.largest_component import LargestComponentsd, largest_components


def line(*values):
    """Probabilities of these voxels, one row along X."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]


def test_the_largest_components_stay_and_take_their_regions_with_them():
    whole = line(0.9, 0.5, 0.2, 0.8, 0.4, 0.7, 0.6, 0.9, 0.1)
    core = line(0.9, 0.1, 0.1, 0.8, 0.1, 0.1, 0.7, 0.1, 0.1)
    both = torch.cat([whole, core])
    one, two = (largest_components(both, parts)[..., 0, 0] for parts in (1, 2))
    assert one[0].tolist() == pytest.approx([0, 0, 0.2, 0, 0.4, 0.7, 0.6, 0.9, 0.1]), "doubts below 0.5 stay"
    assert one[1].tolist() == pytest.approx([0, 0, 0.1, 0, 0.1, 0.1, 0.7, 0.1, 0.1])
    assert two[0].tolist() == pytest.approx([0.9, 0.5, 0.2, 0, 0.4, 0.7, 0.6, 0.9, 0.1])
    for parts in (0, 3, 9):
        assert largest_components(both, parts) is both
    empty = torch.zeros(1, 2, 2, 2)
    assert largest_components(empty, 1) is empty


def test_components_that_touch_at_a_corner_are_two():
    plane = torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.9, 0.9], [0.0, 0.0, 0.0]])[None, ..., None]
    assert largest_components(plane, 1).sum().item() == pytest.approx(1.8)


def test_the_largest_components_of_a_case_keep_where_it_lies_and_the_rest_is_told():
    fine = MetaTensor(line(0.9, 0.0, 0.9, 0.9), affine=2 * torch.eye(4), meta={"case": "anna"})
    data = {"fine": fine, "image": fine}
    found = LargestComponentsd(["fine", "refined"], 1, allow_missing_keys=True)(data)
    kept = found["fine"]
    assert isinstance(kept, MetaTensor) and kept.meta["case"] == "anna" and torch.equal(kept.affine, fine.affine)
    assert kept.flatten().tolist() == pytest.approx([0, 0, 0.9, 0.9])
    assert found["left_out_ml"] == 0.008
    assert LargestComponentsd("fine", 2)(data)["left_out_ml"] == 0
    assert "left_out_ml" not in LargestComponentsd("fine", 0)(data)


@pytest.mark.parametrize("components", [-1, 1.0, True, None])
def test_a_number_of_components_that_is_none_is_refused(components):
    with pytest.raises(ValueError, match="components is"):
        LargestComponentsd("fine", components)
