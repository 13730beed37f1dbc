"""The pages that show a case and a cohort: what they hold, and what a browser makes of it."""

import base64
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from cohort import oblique_affine, save, write_case
from tissnet_components.errors import UserError
from tissnet_components.report.html import report
from tissnet_components.results import page
from tissnet_components.results.overview import overview
from tissnet_components.results.page import view, write_index, write_page

SHAPE, AFFINE = (30, 34, 12), oblique_affine((1, 1, 3))
THRESHOLDS = {"agreement": 0.5, "predicted_dice": 0.3, "mean_error": 0.5, "mean_disagreement": 0.5, "edge_voxels": 1}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_results(out: Path, case: str, flags: Sequence[str] = (), **more: object) -> np.ndarray:
    """The results of a case with a tumor of 4 x 6 x 2 voxels, which is returned."""
    tumor = np.zeros(SHAPE, np.uint8)
    tumor[10:14, 9:15, 5:7] = 1
    head = np.linalg.norm(np.stack(np.indices(SHAPE)).T / (np.array(SHAPE) / 2) - 1, axis=-1).T < 0.9
    maps = {
        "seg": tumor,
        "synthetic": head * (1.2 + 0.5 * tumor) - 1,
        "error": 0.5 * tumor,
        "disagreement": 0.2 * tumor,
    }
    for name, voxels in maps.items():
        save(out / case / f"{case}_{name}.nii.gz", voxels.astype(np.uint8 if name == "seg" else np.float32), AFFINE)
    told = {"volume_ml": 0.144, "agreement": 0.8, "flags": list(flags), "reasons": {}, "thresholds": THRESHOLDS}
    (out / case / f"{case}_summary.json").write_text(json.dumps({"case": case, **told, **more}))
    return tumor


def volumes(file: Path) -> dict[str, nib.Nifti1Image]:
    """What a page holds, title -> volume."""
    content = json.loads(re.search(r'id="content">(.*?)</script>', file.read_text(), re.DOTALL)[1])
    packed = {volume["title"]: base64.b64decode(volume["nifti"]) for volume in content["volumes"]}
    return {title: nib.Nifti1Image.from_bytes(gzip.decompress(nifti)) for title, nifti in packed.items()}


def without_viewer(file: Path) -> str:
    """The page without NiiVue."""
    return re.sub(r"<script>/\*.*?</script>", "", file.read_text(), count=1, flags=re.DOTALL)


def centre_mm(image: nib.Nifti1Image) -> np.ndarray:
    return nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0.1).mean(0))


def test_a_page_and_the_list_say_what_was_left_out_of_the_mask(tmp_path):
    write_results(tmp_path, "anna", left_out_ml=24.57)
    write_results(tmp_path, "bert", left_out_ml=0.0)
    pages = [without_viewer(write_page(tmp_path, case, [], [])) for case in ("anna", "bert")]
    assert "24.6 ml apart from it left out" in pages[0] and "left out" not in pages[1]
    assert write_index(tmp_path).read_text().count("apart from it left out") == 1


def test_a_page_shows_the_scans_the_synthetic_image_the_mask_and_the_doubts_where_they_lie(tmp_path):
    tumor = write_results(tmp_path, "anna")
    scans = write_case(tmp_path / "scans", shape=SHAPE, affine=AFFINE)["image"]
    shown = volumes(write_page(tmp_path, "anna", scans, ["t1", "t1ce", "t2"]))
    assert list(shown) == ["T1", "T1 + contrast agent", "T2", "synthetic", "mask", "predicted error", "disagreement"]
    for title, value in {"mask": 1, "predicted error": 0.5, "disagreement": 0.2}.items():
        voxels = shown[title].get_fdata()
        assert (voxels > 0).sum() == tumor.sum() and voxels.max() == pytest.approx(value)
        assert centre_mm(shown[title]) == pytest.approx(centre_mm(nib.Nifti1Image(tumor, AFFINE)), abs=1e-3)
    assert all(image.get_data_dtype() == np.uint8 for image in shown.values())


def test_a_page_loads_nothing_from_elsewhere(tmp_path):
    write_results(tmp_path, "anna")
    text = without_viewer(write_page(tmp_path, "anna"))
    assert len(text) < 200_000 and not re.search(r"https?:|\bsrc=|\bhref=|\burl\(", text)


def test_a_page_gives_volume_and_flags_with_their_reasons_and_is_for_research_only(tmp_path):
    write_results(
        tmp_path, "anna", ["agreement", "skull"], agreement=0.31, reasons={"skull": "a dark layer near the surface"}
    )
    text = without_viewer(write_page(tmp_path, "anna"))
    assert "0.1 ml" in text and "Research only. Not a medical device." in text
    assert "agreement: the network's two answers overlap less than they should (0.31, threshold 0.5)" in text.replace(
        "&#39;", "'"
    )
    assert "skull: a dark layer near the surface" in text


def test_a_flag_of_a_part_of_the_tumor_has_the_numbers_of_that_part(tmp_path):
    parts, flag = {"tumor core": {"agreement": 0.22}}, "tumor core: agreement"
    write_results(tmp_path, "anna", flags=[flag], parts=parts, regions_ml={"whole tumor": 0.144, "tumor core": 0.1})
    text = without_viewer(write_page(tmp_path, "anna"))
    assert "(0.22, threshold 0.5)" in text and "tumor core 0.1 ml" in text


@pytest.mark.parametrize("case", ["<b>bold<|b>", 'a"b&c', "{{ 7 * 7 }}", "Zoë 1%#?"])
def test_a_name_is_text_whatever_it_looks_like(tmp_path, case):
    write_results(tmp_path, case)
    for file in (write_page(tmp_path, case), write_index(tmp_path)):
        text = file.read_text()
        assert case in text if escape(case) == case else case not in text
        assert "</h1>" in text and "49" not in re.findall(r"<h[12]>(.*?)</h", text)
    link = re.search(r'href="([^"]*)"', text)[1]
    assert re.fullmatch(r"[\w%/.-]+", link) and "view.html" in link


def test_without_a_tumor_the_page_starts_in_the_middle(tmp_path):
    write_results(tmp_path, "anna")
    save(tmp_path / "anna" / "anna_seg.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    assert (volumes(write_page(tmp_path, "anna"))["mask"].get_fdata() == 0).all()


def test_several_synthetic_contrasts_are_named(tmp_path):
    write_results(tmp_path, "anna", synthetic=["t1", "flair"])
    save(tmp_path / "anna" / "anna_synthetic.nii.gz", np.random.default_rng(0).random((*SHAPE, 2)), AFFINE)
    assert list(volumes(write_page(tmp_path, "anna")))[:2] == ["synthetic T1", "synthetic FLAIR"]


def test_volumes_too_large_for_a_page_are_shown_with_larger_voxels_in_the_same_place(tmp_path, monkeypatch):
    tumor = write_results(tmp_path, "anna")
    whole = volumes(write_page(tmp_path, "anna"))
    size_mb = sum(len(gzip.compress(image.to_bytes(), 6)) for image in whole.values()) / 1e6
    monkeypatch.setattr(page, "LIMIT_MB", size_mb * 0.9)
    small = volumes(write_page(tmp_path, "anna"))
    assert nib.affines.voxel_sizes(small["mask"].affine) == pytest.approx([2, 2, 3])
    assert np.prod(small["mask"].shape) == pytest.approx(np.prod(whole["mask"].shape) / 4, rel=0.1)
    assert centre_mm(small["mask"]) == pytest.approx(centre_mm(nib.Nifti1Image(tumor, AFFINE)), abs=1)


def test_scans_on_another_grid_are_refused(tmp_path):
    write_results(tmp_path, "anna")
    scans = write_case(tmp_path / "scans", shape=SHAPE, affine=np.eye(4))["image"]
    with pytest.raises(UserError, match="resample one to the other's grid"):
        view(tmp_path / "anna", t1=scans[0], browser=False)


def test_the_cases_are_listed_the_worst_first_each_with_its_picture_and_page(tmp_path):
    write_results(tmp_path, "bert", agreement=0.9)
    write_results(tmp_path, "anna", agreement=0.6)
    write_results(tmp_path, "carl", ["empty_mask"], agreement=0.95)
    write_page(tmp_path, "bert")
    overview({"source": np.ones((8, 8, 2))}, tmp_path / "anna" / "anna_overview.png")
    text = write_index(tmp_path).read_text()
    assert re.findall(r"<h2>(?:<a .*?>)?(\w+)", text) == ["carl", "anna", "bert"]
    assert '<a href="bert/bert_view.html">bert</a>' in text and '<img src="anna/anna_overview.png"' in text
    assert "3 cases, 1 with flags" in text and "no voxel is tumor" in text


def test_a_case_that_failed_leads_the_list_with_its_reason_and_stays_there_when_the_list_is_looked_at(tmp_path):
    for case in ("anna", "bert"):
        write_results(tmp_path, case)
    write_index(tmp_path, {"bert": "bert: the scan shows 40% of the <brain>"})
    text = Path(view(tmp_path, browser=False)).read_text()
    assert re.findall(r"<h2>(?:<a .*?>)?(\w+)", text) == ["bert", "anna"]
    assert "1 case, 0 with flags, 1 failed" in text and "shows 40% of the &lt;brain&gt;" in text
    os.utime(tmp_path / "bert" / "bert_summary.json", (2e9, 2e9))
    assert "failed" not in Path(view(tmp_path, browser=False)).read_text()


def test_view_opens_what_is_there_and_makes_the_rest(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(page.webbrowser, "open", opened.append)
    write_results(tmp_path / "out", "anna")
    file = tmp_path / "out" / "anna" / "anna_view.html"
    assert view(tmp_path / "out" / "anna") == str(file)
    file.write_text("as it is")
    view(tmp_path / "out" / "anna")
    assert file.read_text() == "as it is"
    view(tmp_path / "out")
    assert opened == [file.as_uri(), file.as_uri(), (tmp_path / "out" / "index.html").as_uri()]


@pytest.mark.parametrize(
    ("folder", "scan", "said"),
    [
        ("", None, "holds no results"),
        ("gone", None, "holds no results"),
        ("out", "t1", "is not the folder of one case"),
    ],
)
def test_view_says_where_there_is_nothing_to_see(tmp_path, folder, scan, said):
    with pytest.raises(UserError, match=said):
        view(tmp_path / folder, t1=scan, browser=False)


def test_a_mask_alone_needs_a_scan_to_lie_on(tmp_path):
    write_results(tmp_path, "anna")
    (tmp_path / "anna" / "anna_synthetic.nii.gz").unlink()
    with pytest.raises(UserError, match="name the scans"):
        write_page(tmp_path, "anna")


def test_a_report_links_to_the_pages_that_are_there(tmp_path):
    for case in ("anna", "bert"):
        write_results(tmp_path / "runs", case)
        overview({"source": np.ones((8, 8, 2))}, tmp_path / "runs" / case / f"{case}_overview.png")
    write_page(tmp_path / "runs", "anna")
    text = Path(report(tmp_path / "runs", out=tmp_path / "pages" / "report.html")).read_text()
    assert re.findall(r'<a href="(\.\..*?)"', text) == ["../runs/anna/anna_view.html"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
def test_in_a_browser_a_click_takes_the_mask_away_the_wheel_moves_the_slice_and_images_blink(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here to click with")
    write_results(tmp_path, "anna")
    scan = write_case(tmp_path / "scans", shape=SHAPE, affine=AFFINE)["image"][0]
    file = write_page(tmp_path, "anna", [scan], ["t1"])
    with playwright.sync_playwright() as started:
        options = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # where there is no GPU
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options, chromium_sandbox=False)
        tab = browser.new_page(viewport={"width": 640, "height": 480})
        tab.set_default_timeout(120_000)
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
        tab.goto(file.as_uri())
        tab.wait_for_selector("body[data-ready]")
        with_mask = [part.sum() for part in np.array_split(green(tab), 3)]
        tab.click("#show-seg")
        tab.click("text=one")
        place = tab.inner_text("#where")
        tab.locator("#axial").press("ArrowRight")
        moved = tab.inner_text("#where")
        shown = tab.locator("figure:visible figcaption").all_inner_texts()
        tab.wait_for_timeout(500)
        without_mask = green(tab).sum()
        box = tab.locator("figure:visible canvas").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        tab.mouse.wheel(0, 100)
        tab.wait_for_function("place => document.querySelector('#where').innerText !== place", arg=moved)
        tab.click("text=blink")
        captions = "[...document.querySelectorAll('figure')].find(f => f.checkVisibility()).innerText"
        for other in ("synthetic", "T1", "synthetic"):
            tab.wait_for_function(f"{captions}.startsWith('{other}')")
        browser.close()
    assert errors == []
    assert min(with_mask) > 5, "each plane goes through the tumor"
    assert without_mask == 0 and shown == ["T1"] and moved != place


def green(tab) -> np.ndarray:
    """Which pixels of the canvases have the colour of the mask."""
    pixels = matplotlib.image.imread(io.BytesIO(tab.locator("#views").screenshot()))[..., :3]
    return (pixels[..., 1] > 0.7) & (pixels[..., 0] < 0.5) & (pixels[..., 2] < 0.6)
