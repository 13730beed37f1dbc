import matplotlib
import numpy as np
import pytest
from tissnet_components.results.overview import overview, overview_figure


def image(shape=(24, 20, 10)):
    volume = np.full(shape, -1.0, dtype=np.float32)
    volume[4:-4, 4:-4] = np.linspace(-0.5, 1, shape[2])
    return volume


def box(*sides, shape=(24, 20, 10)):
    mask = np.zeros(shape, dtype=np.float32)
    mask[tuple(slice(*side) for side in sides)] = 1
    return mask


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def shown(figure, title):
    """Pixels of a panel's first image, as (rows, columns)."""
    axes = next(axes for axes in figure.axes if axes.get_title() == title)
    return np.asarray(axes.images[0].get_array())


def test_every_source_channel_gets_a_panel_and_absent_maps_get_none():
    figure = overview_figure({"source": np.stack([image(), image()]), "fine": image()}, source_names=("t1", "t1ce"))
    assert titles(figure) == ["T1", "contrast-enhanced T1", "segmentation (fine)"]


def test_a_segmentation_that_is_the_consensus_is_titled_so():
    assert titles(overview_figure({"fine": image()}, answer="consensus")) == ["segmentation (consensus)"]


def test_a_source_that_is_the_target_is_drawn_once():
    t1, flair = image(), 2 * image()
    upper_bound = {"source": np.stack([t1, flair]), "target": flair, "fine": image()}
    assert titles(overview_figure(upper_bound, source_names=("T1", "FLAIR"))) == [
        "T1",
        "real target",
        "segmentation (fine)",
    ]


def test_refined_is_outlined_where_a_network_has_no_fine():
    refined = overview_figure({"source": image(), "refined": box((8, 12), (8, 12), (3, 6))})
    both = overview_figure({"source": image(), "refined": image(), "fine": box((8, 12), (8, 12), (3, 6))})
    for figure in (refined, both):
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["segmentation"]
        (outline,) = figure.axes[0].collections
        assert len(outline.get_paths()[0].vertices) > 8


def test_the_slice_is_where_the_label_is_largest():
    label = box((8, 10), (8, 10), (2, 9)) + box((10, 16), (10, 14), (6, 7))
    assert overview_figure({"source": image(), "label": label}).texts[0].get_text() == "slice 6"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, -7]], 5, id="upwards from -7, 4 slices of 3"),
        pytest.param([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -3, 30]], 15, id="downwards from 30, 5 slices of 3"),
        pytest.param([[0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, 5]], 13, id="the first axis runs upwards, 2 each"),
    ],
)
def test_the_heading_gives_the_height_that_a_viewer_shows(rows, expected):
    figure = overview_figure({"source": image()}, slice_index=4, affine=np.array([*rows, [0, 0, 0, 1]], float))
    assert figure.texts[0].get_text() == f"axial at {expected} mm"


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        pytest.param({"fine": box((8, 12), (8, 12), (3, 4))}, 3, id="fine without a label"),
        pytest.param({"label": np.zeros((24, 20, 10)), "fine": box((8, 12), (8, 12), (3, 4))}, 3, id="empty label"),
        pytest.param({}, 5, id="no tumor: the middle"),
    ],
)
def test_without_a_label_the_slice_comes_from_fine_or_the_middle(maps, expected):
    assert overview_figure({"source": image()} | maps).texts[0].get_text() == f"slice {expected}"


@pytest.mark.parametrize(("codes", "affine"), [("LPS", np.diag([-1.0, -1, 1, 1])), ("RAS", np.diag([1.0, 1, 1, 1]))])
def test_the_patients_left_front_is_shown_at_the_upper_right(codes, affine):
    """A bright mark at the left front of the patient, in arrays of either orientation."""
    ras = image()
    ras[5:7, 13:15] = 3  # R to L grows down in RAS index: low x is the patient's left, high y the front
    volume = ras if codes == "RAS" else ras[::-1, ::-1]
    pixels = shown(overview_figure({"target": volume}, affine=affine), "real target")
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert row < pixels.shape[0] / 2 and column > pixels.shape[1] / 2


def test_axes_in_another_order_are_brought_upright():
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])  # array axes are S, P, L
    turned = overview_figure({"target": image().transpose(2, 1, 0)}, affine=affine, slice_index=4)
    straight = overview_figure({"target": image()}, affine=np.diag([-1.0, -1, 1, 1]), slice_index=4)
    assert np.array_equal(shown(turned, "real target"), shown(straight, "real target"))


def test_the_picture_is_saved_whole_and_is_a_png(tmp_path):
    path = overview({"source": image(), "label": box((8, 12), (8, 12), (3, 6))}, tmp_path / "new" / "a.png", "case a")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_failed_drawing_leaves_the_older_picture_alone(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match="unknown maps"):
        overview({"fines": image()}, path)
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("name", ["$x$", "$\\foo$", "a$b"])
def test_a_name_is_no_mathematics(tmp_path, name):
    figure = overview_figure({"source": np.ones((8, 8, 2))}, title=name)
    figure.savefig(tmp_path / "figure.png")
    assert figure.texts[0].get_text().replace("\\$", "$").startswith(name)


def test_drawing_leaves_the_global_backend_alone():
    before = matplotlib.get_backend()
    overview_figure({"source": image(), "fine": image()})
    assert matplotlib.get_backend() == before


def test_a_constant_image_and_empty_masks_are_drawn():
    flat = np.full((12, 12, 6), -1.0)
    assert titles(overview_figure({"source": flat, "fine": flat * 0, "label": flat * 0})) == [
        "source 1",
        "segmentation (fine)",
        "label",
    ]


@pytest.mark.parametrize(
    ("maps", "settings", "message"),
    [
        pytest.param({}, {}, "no maps to draw", id="nothing"),
        pytest.param({"source": image(), "fine": image((8, 8, 8))}, {}, "one grid", id="two grids"),
        pytest.param({"source": image()}, {"slice_index": 10}, "slice 10 does not exist", id="slice outside"),
    ],
)
def test_what_cannot_be_drawn_is_refused(maps, settings, message):
    with pytest.raises(ValueError, match=message):
        overview_figure(maps, **settings)


def test_panels_name_the_regions_and_the_contrasts_that_were_synthesised():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 4))
    source = np.concatenate([image[:1], np.full_like(image, -1)])
    figure = overview_figure(
        {"source": source, "synthetic": image, "fine": np.ones((3, 8, 8, 4))}, source_names=("t1", "t2", "flair")
    )
    regions = ["whole tumor", "tumor core", "enhancing tumor"]
    assert titles(figure) == [
        *("T1", "synthetic: T2", "synthetic: FLAIR"),
        *(f"segmentation (fine): {name}" for name in regions),
    ]
