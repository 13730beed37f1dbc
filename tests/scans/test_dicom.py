import nibabel as nib
import numpy as np
import pytest
from cohort import oblique_affine
from dicom_files import save_all, slices_of
from tissnet_components.errors import BadCase
from tissnet_components.scans.dicom import find_series, read_series

SHAPE = (6, 5, 4)


def volume(spacing_mm: tuple[float, float, float] = (0.41, 0.5, 1.5)) -> nib.Nifti1Image:
    """Every voxel has a value of its own; oblique axes."""
    return nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), oblique_affine(spacing_mm))


def the_only(folder):
    (series,) = find_series(folder)
    return series


def test_a_series_comes_back_with_its_voxels_and_its_place(tmp_path):
    save_all(slices_of(volume()), tmp_path)
    read = read_series(the_only(tmp_path))
    assert read.get_data_dtype() == np.int16
    np.testing.assert_array_equal(read.dataobj, volume().dataobj)
    np.testing.assert_allclose(read.affine, volume().affine, atol=1e-4)


def test_slices_are_ordered_by_position_whatever_the_files_are_called(tmp_path):
    items = slices_of(volume())
    save_all([items[index] for index in (2, 0, 3, 1)], tmp_path)
    np.testing.assert_array_equal(read_series(the_only(tmp_path)).dataobj, volume().dataobj)


def test_slices_stored_from_top_to_bottom_make_the_same_image(tmp_path):
    upside_down = volume().as_reoriented([[0, 1], [1, 1], [2, -1]])
    save_all(slices_of(upside_down), tmp_path)
    read = read_series(the_only(tmp_path))
    voxel_mm = volume().affine @ [1, 2, 3, 1]
    i, j, k = np.rint(np.linalg.inv(read.affine) @ voxel_mm)[:3].astype(int)
    assert read.dataobj[i, j, k] == volume().dataobj[1, 2, 3]


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.4.1"])
def test_the_place_does_not_depend_on_the_kind_of_object_that_a_header_names(tmp_path, kind):
    items = slices_of(volume())
    for item in items:
        item.SOPClassUID = kind
    save_all(items, tmp_path)
    np.testing.assert_allclose(read_series(the_only(tmp_path)).affine, volume().affine, atol=1e-4)


def test_rescale_slope_and_intercept_are_applied(tmp_path):
    items = slices_of(volume())
    for item in items:
        item.RescaleSlope, item.RescaleIntercept = "0.5", "10"
    save_all(items, tmp_path)
    read = read_series(the_only(tmp_path))
    np.testing.assert_allclose(read.dataobj, np.asarray(volume().dataobj) * 0.5 + 10)
    assert read.get_data_dtype() == np.float32


def test_headers_tell_what_a_series_is(tmp_path):
    items = slices_of(volume(), patient="VS-SEG-007", description="t1_fl3d")
    for item in items:
        item.ContrastBolusAgent = "Gadovist"
    files = save_all(items, tmp_path / "1.2.3" / "deep")
    series = the_only(tmp_path)
    assert (series.patient, series.description, series.modality) == ("VS-SEG-007", "t1_fl3d", "MR")
    assert series.headers[2]["ContrastBolusAgent"] == "Gadovist"
    assert series.headers[2]["ImageType"] == "ORIGINAL\\PRIMARY"
    assert series.files == tuple(files)
    assert series.uid == items[0].SeriesInstanceUID


def test_two_series_in_one_folder_are_told_apart(tmp_path):
    save_all(slices_of(volume(), description="t1"), tmp_path, "a{}.dcm")
    save_all(slices_of(volume(), description="t2"), tmp_path, "b{}.dcm")
    assert [(series.description, len(series.files)) for series in find_series(tmp_path)] == [("t1", 4), ("t2", 4)]


def test_an_instance_that_lies_there_twice_counts_once(tmp_path):
    items = slices_of(volume())
    save_all(items, tmp_path / "descriptive")
    save_all(items, tmp_path / "classic")
    assert len(the_only(tmp_path).files) == SHAPE[2]


def test_slices_that_share_one_instance_uid_are_told_apart_by_their_positions(tmp_path):
    items = slices_of(volume())
    for item in items:
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        del item.InstanceNumber
    save_all(items, tmp_path / "descriptive")
    save_all(items, tmp_path / "classic")
    np.testing.assert_array_equal(read_series(the_only(tmp_path)).dataobj, volume().dataobj)


def test_other_files_are_passed_over(tmp_path):
    save_all(slices_of(volume()), tmp_path)
    (tmp_path / "LICENSE").write_text("CC BY 4.0")
    (tmp_path / "._1-001.dcm").write_text("macOS's shadow")
    assert the_only(tmp_path).unreadable == ()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        find_series(tmp_path / "absent")


@pytest.mark.parametrize("left", [0, 100, 140, 400])
def test_a_damaged_file_among_good_ones_is_named(tmp_path, left):
    files = save_all(slices_of(volume()), tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:left])
    with pytest.raises(BadCase, match=r"1-002\.dcm cannot be read"):
        read_series(the_only(tmp_path))


@pytest.mark.parametrize("left", [100, 200])
def test_a_damaged_file_stops_only_the_series_that_misses_a_slice(tmp_path, left):
    save_all(slices_of(volume(), "P1"), tmp_path, "a{}.dcm")
    files = save_all(slices_of(volume(), "P2"), tmp_path, "b{}.dcm")
    files[1].write_bytes(files[1].read_bytes()[:left])
    good, bad = find_series(tmp_path)
    np.testing.assert_array_equal(read_series(good).dataobj, volume().dataobj)
    with pytest.raises(BadCase, match=r"b2\.dcm cannot be read"):
        read_series(bad)


def test_a_damaged_file_that_may_be_the_last_slice_of_any_series_stops_all(tmp_path):
    save_all(slices_of(volume(), "P1"), tmp_path, "a{}.dcm")
    files = save_all(slices_of(volume(), "P2"), tmp_path, "b{}.dcm")
    files[-1].write_bytes(files[-1].read_bytes()[:200])
    for series in find_series(tmp_path):
        with pytest.raises(BadCase, match=r"b4\.dcm cannot be read"):
            read_series(series)


def test_a_last_slice_that_is_cut_short_is_noticed_without_dicom_s_ending(tmp_path):
    files = save_all(slices_of(volume()), tmp_path, "IM{:04d}")
    files[-1].write_bytes(files[-1].read_bytes()[:100])
    (tmp_path / "README").write_text("notes")
    assert the_only(tmp_path).unreadable == (files[-1],)


def test_a_slice_cut_within_its_pixels_is_named(tmp_path):
    files = save_all(slices_of(volume()), tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:-10])
    with pytest.raises(BadCase, match=r"1-002\.dcm holds 50 of 60 bytes of its pixels"):
        read_series(the_only(tmp_path))


def test_a_slice_with_empty_pixels_is_named(tmp_path):
    items = slices_of(volume())
    items[1].PixelData = b""
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=r"1-002\.dcm holds 0 of 60 bytes of its pixels"):
        read_series(the_only(tmp_path))


def test_a_missing_slice_is_noticed(tmp_path):
    items = slices_of(volume())
    save_all([items[0], items[1], items[3]], tmp_path)
    with pytest.raises(BadCase, match=r"1-002.dcm and 1-003.dcm are 3\.00 mm apart but other slices 1\.50 mm: one is"):
        read_series(the_only(tmp_path))


def move(item, millimetres):
    item.ImagePositionPatient = [float(x) + d for x, d in zip(item.ImagePositionPatient, millimetres, strict=True)]


def test_uneven_spacing_is_refused(tmp_path):
    straight = nib.Nifti1Image(volume().dataobj, np.diag([-0.4, -0.4, 1.5, 1]))
    items = slices_of(straight)
    move(items[3], (0, 0, 0.3))
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=r"1-003\.dcm and 1-004\.dcm are 1\.80 mm apart but other slices 1\.50 mm"):
        read_series(the_only(tmp_path))


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    straight = nib.Nifti1Image(volume().dataobj, np.diag([-0.4, -0.4, 1.5, 1]))
    items = slices_of(straight)
    for index, item in enumerate(items):
        move(item, (0, 1.5 * np.tan(np.radians(15)) * index, 0))
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=r"tilted by 15\.0 degrees \(gantry tilt\)"):
        read_series(the_only(tmp_path))


@pytest.mark.parametrize("odd", [1, 3], ids=["within", "the last"])
def test_a_slice_that_is_shifted_within_its_plane_is_refused(tmp_path, odd):
    items = slices_of(volume())
    move(items[odd], 3 * np.array(items[odd].ImageOrientationPatient[:3], dtype=float))
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=rf"1-{odd + 1:03d}\.dcm .*are shifted sideways by 3\.00 mm, unlike the others"):
        read_series(the_only(tmp_path))


def test_two_slices_at_one_place_are_refused(tmp_path):
    items = slices_of(volume())
    items[2].ImagePositionPatient = items[1].ImagePositionPatient
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match="two slices at one place"):
        read_series(the_only(tmp_path))


@pytest.mark.parametrize("tag, value", [("PixelSpacing", [0.5, 0.6]), ("ImageOrientationPatient", [1, 0, 0, 0, 1, 0])])
def test_slices_that_do_not_belong_together_are_refused(tmp_path, tag, value):
    items = slices_of(volume())
    setattr(items[2], tag, value)
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=f"1-003.dcm has {tag}"):
        read_series(the_only(tmp_path))


def test_a_single_slice_a_multi_frame_file_and_a_slice_without_place_are_refused(tmp_path):
    items = slices_of(volume())
    save_all(items[:1], tmp_path / "single")
    items[1].NumberOfFrames = 7
    save_all(items[1:2], tmp_path / "frames")
    del items[2].ImagePositionPatient
    save_all(items[2:], tmp_path / "lost")
    for folder, reason in (("single", "the only slice"), ("frames", "7 frames"), ("lost", "ImagePositionPatient")):
        with pytest.raises(BadCase, match=reason):
            read_series(the_only(tmp_path / folder))


@pytest.mark.parametrize(("tag", "value"), [("BitsStored", 0), ("BitsStored", 17), ("SamplesPerPixel", 0)])
def test_a_slice_whose_header_cannot_describe_its_pixels_is_refused(tmp_path, tag, value):
    items = slices_of(volume())
    setattr(items[2], tag, value)
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=r"1-003.dcm says that \d+ bits of 16 are used, \d times per pixel"):
        read_series(the_only(tmp_path))


@pytest.mark.parametrize(("stored", "high"), [(12, 15), (12, 10), (16, 11)])
def test_pixels_that_do_not_end_at_the_lowest_bit_are_refused(tmp_path, stored, high):
    items = slices_of(volume())
    items[2].BitsStored, items[2].HighBit = stored, high
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=rf"1-003.dcm has HighBit {high}, expected {stored - 1} for {stored} BitsStored"):
        read_series(the_only(tmp_path))


def test_a_highest_bit_that_is_left_out_follows_from_the_bits_stored(tmp_path):
    items = slices_of(volume())
    for item in items:
        del item.HighBit
    save_all(items, tmp_path)
    np.testing.assert_array_equal(read_series(the_only(tmp_path)).dataobj, volume().dataobj)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize(("tag", "value"), [("RescaleSlope", "0"), ("RescaleIntercept", "nan")])
def test_a_slice_whose_rescaling_leaves_no_image_is_refused(tmp_path, tag, value):
    items = slices_of(volume())
    setattr(items[2], tag, value)
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match=r"1-003.dcm has RescaleSlope and RescaleIntercept \[.*\], which leave no image"):
        read_series(the_only(tmp_path))


def test_a_number_of_frames_that_is_left_empty_is_one(tmp_path):
    items = slices_of(volume())
    items[2].NumberOfFrames = ""
    save_all(items, tmp_path)
    assert read_series(the_only(tmp_path)).shape == volume().shape


def test_what_is_no_image_is_refused(tmp_path):
    items = slices_of(volume())
    for item in items:
        item.Modality = "RTSTRUCT"
    save_all(items, tmp_path)
    with pytest.raises(BadCase, match="is RTSTRUCT, expected MR"):
        read_series(the_only(tmp_path))
