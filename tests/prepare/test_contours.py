import json
from pathlib import Path

import numpy as np
import pytest
from dicom_files import rtstruct
from scipy.spatial.transform import Rotation
from tissnet_components.errors import BadCase
from tissnet_components.prepare.contours import (
    move,
    read_contours,
    read_rtstruct,
    referenced_series,
    tumor_mask,
    volume_mm3,
)

RAS_OF_LPS_GRID = np.diag([-1.0, -1.0, 1.0, 1.0])  # voxel i, j, k lies at i, j, k mm in LPS
SQUARE = [(2.5, 2.5), (6.5, 2.5), (6.5, 6.5), (2.5, 6.5)]


def at(height_mm: float, corners=SQUARE) -> np.ndarray:
    return np.array([(x, y, height_mm) for x, y in corners], dtype=float)


def write_json(file: Path, **structures) -> Path:
    items = [
        {"structure_name": name, "LPS_contour_points": [np.asarray(loop).tolist() for loop in loops]}
        for name, loops in structures.items()
    ]
    file.write_text(json.dumps(items))
    return file


def circle(radius_mm: float, centre=(0.0, 0.0), corners: int = 100) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([centre[0] + radius_mm * np.cos(angle), centre[1] + radius_mm * np.sin(angle)], axis=1)


def ball_sections(radius_mm: float, centre, distance_mm: float, offset_mm: float = 0.0) -> list[np.ndarray]:
    heights = np.arange(-20, 20) * distance_mm + offset_mm
    return [
        at(centre[2] + h, circle(np.sqrt(radius_mm**2 - h**2), centre[:2])) for h in heights if abs(h) < radius_mm - 0.2
    ]


def test_contours_in_the_slices_give_the_voxels_inside_them():
    mask = tumor_mask([at(2), at(3)], (9, 9, 7), RAS_OF_LPS_GRID)
    expected = np.zeros((9, 9, 7))
    expected[3:7, 3:7, 2:4] = 1
    np.testing.assert_array_equal(mask, expected)


def test_contours_between_the_slices_are_interpolated():
    wide = at(1, [(0.5, 3.5), (8.5, 3.5), (8.5, 6.5), (0.5, 6.5)])
    narrow = at(3, [(2.5, 3.5), (6.5, 3.5), (6.5, 6.5), (2.5, 6.5)])
    half_millimetre_slices = np.diag([1, 1, 0.5, 1])
    half_millimetre_slices[2, 3] = 0.25
    mask = tumor_mask([wide, narrow], (10, 10, 9), RAS_OF_LPS_GRID @ half_millimetre_slices)
    assert mask[:, 5].sum(0).tolist() == [8, 8, 8, 6, 6, 4, 4, 4, 0]


def test_the_volume_is_area_times_distance():
    assert volume_mm3([at(2), at(3.5)]) == pytest.approx(2 * 16 * 1.5, rel=0.03)


def test_a_contour_within_another_is_a_hole_and_one_beside_it_an_island():
    outer, inner, beside = (
        [(0.5, 0.5), (9.5, 0.5), (9.5, 9.5), (0.5, 9.5)],
        SQUARE,
        [(11.5, 2.5), (13.5, 2.5), (13.5, 4.5), (11.5, 4.5)],
    )
    loops = [at(h, corners) for h in (1, 2) for corners in (outer, inner, beside)]
    mask = tumor_mask(loops, (16, 11, 4), RAS_OF_LPS_GRID)
    assert mask[..., 1].sum() == 81 - 16 + 4
    assert not mask[3:7, 3:7].any()
    assert mask[12:14, 3:5, 1:3].all()


def test_a_contour_that_touches_itself_keeps_both_lobes():
    eight = [(0.5, 0.5), (4.5, 4.5), (8.5, 0.5), (8.5, 8.5), (4.5, 4.5), (0.5, 8.5)]
    mask = tumor_mask([at(1, eight), at(2, eight)], (10, 10, 4), RAS_OF_LPS_GRID)
    assert mask[1, 4, 1] and mask[8, 4, 1]
    assert not mask[4, 1, 1] and not mask[4, 8, 1]


@pytest.mark.parametrize("offset_mm", [0.0, 0.4, 0.75])
@pytest.mark.parametrize("degrees", [0, 1, 20])
def test_a_ball_comes_back_within_half_a_voxel_wherever_its_planes_lie(offset_mm, degrees):
    spacing_mm, shape, radius = np.array([0.5, 0.5, 1.5]), (40, 40, 14), 6.0
    centre = np.array([9.8, 9.9, 9.7])
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([np.radians(degrees), 0, 0]).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    contours = move(ball_sections(radius, centre, 1.5, offset_mm), turn)
    mask = tumor_mask(contours, shape, RAS_OF_LPS_GRID @ np.diag([*spacing_mm, 1]))
    voxels = np.stack(np.indices(shape), -1)
    corners = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    reach = [np.linalg.norm((voxels + corner) * spacing_mm - centre, axis=-1) < radius for corner in corners]
    assert mask[np.all(reach, axis=0)].all()
    assert not mask[~np.any(reach, axis=0)].any()
    assert mask.sum() * spacing_mm.prod() == pytest.approx(volume_mm3(contours), rel=0.01)


def test_contours_outside_the_image_and_contours_in_one_plane_are_refused():
    with pytest.raises(BadCase, match="lie 2 voxels outside the image"):
        tumor_mask([at(2), at(3)], (5, 9, 7), RAS_OF_LPS_GRID)
    with pytest.raises(BadCase, match="in one plane only"):
        tumor_mask([at(2)], (9, 9, 7), RAS_OF_LPS_GRID)


@pytest.mark.parametrize("heights", [(1, 2, 4, 5), (1, 2, 3, 3.5)], ids=["a plane missing", "a plane too many"])
def test_contours_in_uneven_planes_are_refused(heights):
    with pytest.raises(BadCase, match=r"in planes (2\.0|0\.5) mm apart but others 1\.0 mm; draw the missing ones"):
        tumor_mask([at(h) for h in heights], (9, 9, 7), RAS_OF_LPS_GRID)


def test_planes_may_differ_by_less_than_contours_in_one_plane():
    assert tumor_mask([at(h) for h in (1, 2, 3.15)], (9, 9, 7), RAS_OF_LPS_GRID)[4, 4].tolist() == [0, 1, 1, 1, 0, 0, 0]


def test_contours_that_are_not_planar_are_refused():
    bent = at(2)
    bent[0, 2] += 1
    with pytest.raises(BadCase, match="leave their planes"):
        tumor_mask([bent, at(3)], (9, 9, 7), RAS_OF_LPS_GRID)


@pytest.mark.parametrize("name", ["TV", "tv", "AN", "an", "Rt AN", "TvT1", "tumour", "tumor", "VS", "Vol", "left_AN"])
def test_the_tumor_is_known_under_its_many_names(tmp_path, name):
    others = {"Cochlea": [at(9)], "Vol2016": [at(8)], "Vol 2y": [at(8)], "1y": [at(8)], "Brainstem": [at(7)]}
    contours = read_contours(write_json(tmp_path / "c.json", **{name: [at(2), at(3)]}, **others))
    np.testing.assert_array_equal(contours, [at(2), at(3)])


def test_what_cannot_be_decided_is_refused_until_it_is_named(tmp_path):
    none = write_json(tmp_path / "none.json", Men=[at(2), at(3)], cochlea=[at(9)])
    with pytest.raises(BadCase, match=r"none\.json has 0 structures called like a tumor, among Men, cochlea; name"):
        read_contours(none)
    assert len(read_contours(none, "Men")) == 2
    with pytest.raises(BadCase, match="has 2 structures called like a tumor, among TV, AN"):
        read_contours(write_json(tmp_path / "two.json", TV=[at(2)], AN=[at(2)]))


def test_the_repeated_first_point_is_dropped(tmp_path):
    closed = np.concatenate([at(2), at(2)[:1]])
    np.testing.assert_array_equal(read_contours(write_json(tmp_path / "c.json", TV=[closed])), [at(2)])


def test_a_contour_that_is_stored_twice_counts_once(tmp_path):
    from_another_point = np.roll(at(3), 1, axis=0)
    contours = read_contours(write_json(tmp_path / "c.json", TV=[at(2), at(3), from_another_point, at(4), at(4)]))
    mask = tumor_mask(contours, (9, 9, 7), RAS_OF_LPS_GRID)
    assert mask.sum((0, 1)).tolist() == [0, 0, 16, 16, 16, 0, 0]


@pytest.mark.parametrize(
    "loop",
    [[[1, 2], [3, 4], [5, 6]], [[1, 2, 3], None, [4, 5, 6]], None, [["a", "b", "c"]]],
    ids=["2-D", "a point missing", "null", "text"],
)
def test_points_that_are_not_in_space_are_refused(tmp_path, loop):
    file = tmp_path / "c.json"
    file.write_text(json.dumps([{"structure_name": "TV", "LPS_contour_points": [at(1).tolist(), loop]}]))
    with pytest.raises(BadCase, match=r"contour 2 of the tumor in .*c\.json has points that are not 3-D; mend it"):
        read_contours(file)


def test_open_and_empty_contours_are_refused(tmp_path):
    around = at(2, circle(5, corners=40))
    with pytest.raises(BadCase, match=r"contour 2 of the tumor in .*c\.json is open by 7\.\d mm; close or remove it"):
        read_contours(write_json(tmp_path / "c.json", TV=[at(1), around[:30]]))
    with pytest.raises(BadCase, match=r"is open by 3\.1 mm"):
        read_contours(write_json(tmp_path / "c.json", TV=[around[:37]]))
    assert len(read_contours(write_json(tmp_path / "c.json", TV=[around[:39]]))) == 1  # a point too few
    with pytest.raises(BadCase, match=r"contour 1 .* encloses nothing"):
        read_contours(write_json(tmp_path / "c.json", TV=[at(2)[:2]]))
    with pytest.raises(BadCase, match="has no contour of the tumor"):
        read_contours(write_json(tmp_path / "c.json", TV=[]))


@pytest.mark.parametrize("text", ["", "{", "{}", '[{"name": "TV"}]', "7"])
def test_what_is_no_contours_file_is_refused(tmp_path, text):
    (tmp_path / "contours.json").write_text(text)
    with pytest.raises(BadCase, match=r"contours\.json"):
        read_contours(tmp_path / "contours.json")


def test_rtstruct_holds_the_same_contours_and_names_its_series(tmp_path):
    file = tmp_path / "rs.dcm"
    rtstruct({"TV": [at(2), at(3)], "Cochlea": [at(9)]}, "1.2.3").save_as(file, enforce_file_format=True)
    np.testing.assert_allclose(read_rtstruct(file), [at(2), at(3)])
    assert referenced_series(file) == "1.2.3"


def test_two_tumors_of_one_name_in_rtstruct_are_refused(tmp_path):
    item = rtstruct({"TV": [at(2), at(3)], "other": [at(4), at(5)]}, "1.2.3")
    item.StructureSetROISequence[1].ROIName = "TV"
    item.save_as(tmp_path / "rs.dcm", enforce_file_format=True)
    with pytest.raises(BadCase, match=r"rs\.dcm has 2 structures called like a tumor, among TV, TV"):
        read_rtstruct(tmp_path / "rs.dcm")


def test_an_open_or_damaged_rtstruct_is_refused(tmp_path):
    file = tmp_path / "rs.dcm"
    rtstruct({"TV": [at(2), at(3)]}, "1.2.3", geometry="OPEN_PLANAR").save_as(file, enforce_file_format=True)
    with pytest.raises(BadCase, match="of type OPEN_PLANAR, expected CLOSED_PLANAR"):
        read_rtstruct(file)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(BadCase, match="cannot be read as RTSTRUCT"):
        read_rtstruct(file)
