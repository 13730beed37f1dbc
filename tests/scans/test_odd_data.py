"""Any data set, table or folder ends in a right answer or in one sentence that names the file, cause and cure."""

import contextlib
import csv
import gzip
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohort import write_case
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from odd_input import EXTREMES, inputs, names, odd_headers, refusal, tried, with_header, write
from test_segment import tiny_bundle
from tissnet_components.files import write_atomic
from tissnet_components.phantom.cohort import phantom
from tissnet_components.prepare.brats import prepare_brats
from tissnet_components.prepare.vestibular import prepare_vs
from tissnet_components.report.html import report
from tissnet_components.scans.cases import check_case
from tissnet_components.scans.datalist import SECTIONS
from vestibular_download import simulate, write_bids


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle("tissnet_vs", tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)


DAMAGE = st.one_of(
    st.tuples(st.just("header"), odd_headers()),
    st.tuples(st.just("cut"), st.integers(0, 3000)),
    st.tuples(st.just("fill"), EXTREMES),
    st.tuples(st.just("link"), st.sampled_from(("itself", "nowhere", "folder", "another"))),
    st.tuples(st.just("gone"), st.none()),
    st.tuples(st.just("type"), st.sampled_from(("c8", "f8", "i8", "u1", "RGB"))),
)


def damage(file: Path, kind: str, how) -> None:
    """Spoil a packed NIfTI file in some way, or leave it as good as it was."""
    plain = gzip.decompress(file.read_bytes())
    volume = nib.Nifti1Image.from_bytes(plain)
    file.unlink()
    if kind == "header":
        write(file, with_header(plain, how))
    elif kind == "cut":
        file.write_bytes(gzip.compress(plain)[:how])
    elif kind == "fill":
        array = voxels(volume).astype("f8")
        array[1:3, 1:3, 1:3] = how
        nib.save(nib.Nifti1Image(array, volume.affine), file)
    elif kind == "link":
        file.with_name("folder").mkdir()
        targets = {"itself": file, "nowhere": "none.nii.gz", "folder": file.with_name("folder")}
        file.symlink_to(targets.get(how, next(file.parent.glob("*.nii.gz"), "none.nii.gz")))
    elif kind == "type":
        dtype = np.dtype([(colour, "u1") for colour in "RGB"]) if how == "RGB" else np.dtype(how)
        array = np.zeros(volume.shape, dtype) if how == "RGB" else voxels(volume).astype(dtype)
        nib.save(nib.Nifti1Image(array, volume.affine, dtype=dtype), file)


@tried(10, 200)
def test_a_damaged_file_keeps_its_case_out_of_the_datalist_and_no_other(amount, tmp_path):
    for name in ("anna", "bert", "carl"):
        write_case(tmp_path / "good" / name, shape=(6, 7, 5))

    @inputs(amount, st.sampled_from(("t1", "t2", "flair", "seg")), DAMAGE)
    def ends(modality, harm):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            root, out = Path(folder) / "cohort", Path(folder) / "datalist.json"
            shutil.copytree(tmp_path / "good", root)
            damage(root / "bert" / f"bert_{modality}.nii.gz", *harm)
            said = refusal(
                lambda: prepare_brats(str(root), str(out), workers=1), "1 of 3 cases are not in the datalist"
            )
            found = [case for section in SECTIONS for case in json.loads(out.read_text())[section]]
            names = {case["case"] for case in found}
            unlabelled = not (root / "bert" / "bert_seg.nii.gz").is_file()  # which is no failure
            assert names == {"anna", "carl"} | (set() if said or unlabelled else {"bert"})
            for case in found:
                check_case(absolute(case, out.parent))


def absolute(case: dict, folder: Path) -> dict:
    files = {key: str(folder / case[key]) for key in ("target", "label")}
    return {"case": case["case"], "image": [str(folder / file) for file in case["image"]], **files}


@tried(4, 60)
def test_a_damaged_download_of_vs_patients_is_converted_or_named(amount, tmp_path):
    patients = [simulate(number) for number in (1, 182)]
    for patient in patients:
        write_bids(tmp_path / "good", patient)
    files = [
        file.relative_to(tmp_path / "good") for file in sorted((tmp_path / "good").rglob("*001*")) if file.is_file()
    ]
    texts = st.one_of(
        st.binary(max_size=30), st.sampled_from((b"", b"[]", b"{}", b"null", b"[1]", b'[{"structure_name": 1}]'))
    )

    @inputs(amount, st.sampled_from(files), DAMAGE, texts)
    def ends(name, harm, text):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            root, out = Path(folder) / "vs", Path(folder) / "out"
            shutil.copytree(tmp_path / "good", root)
            if name.name.endswith(".gz"):
                damage(root / name, *harm)
            else:
                (root / name).write_bytes(text)
            refusal(lambda: prepare_vs(str(root), str(out), workers=1), "1 of 2 cases are not in the datalist")
            found = [
                case["case"]
                for section in SECTIONS
                for case in json.loads((out / "datalist.json").read_text())[section]
            ]
            assert "VS-SEG-182" in found
            for case in found:
                volumes = [nib.load(out / case / f"{case}_{kind}.nii.gz") for kind in ("t2", "t1ce", "seg")]
                assert len({volume.shape for volume in volumes}) == 1
                assert 0 < voxels(volumes[-1]).sum() < 3000


@tried(5, 150)
def test_a_phantom_s_arguments_are_refused_in_a_sentence(amount, tmp_path):
    odd = st.one_of(
        st.sampled_from((None, True, -1, 0, 2, 2.5, 1e9, "x", "", (1,), {}, np.nan, np.inf)), st.text(max_size=5)
    )
    options = st.dictionaries(
        st.sampled_from(("task", "cases", "seed", "spacing", "workers", "contours")), odd, min_size=1
    )

    @inputs(amount, options, st.sampled_from(("out", "file/out", "file", "x" * 300, "loop", "taken")))
    def ends(changes, out):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            place = Path(folder)
            (place / "file").touch()
            (place / "loop").symlink_to("loop")
            (place / "taken").mkdir()
            (place / "taken" / "dataset_description.json").write_bytes(b"\xff\x00{")
            said = refusal(
                lambda: phantom(**{"task": "nothing", "cases": 3} | changes, out=place / out), *changes, "task", place
            )
            assert said


CELLS = st.one_of(
    st.sampled_from(("", "0.5", "nan", "inf", "-1", "1e999", "a,b", "\n", "\0", "患", "$x$")), st.text(max_size=4)
)
COLUMNS = st.lists(
    st.sampled_from(("protocol", "case", "fine_dice", "fine_ml", "label_ml", "ssim", "", "x")), max_size=6
)
SOUND = b"protocol,case,label_ml,fine_dice,fine_ml\nwhole,p,3,0.5,2\nwhole,q,3,0.7,3\n"
STUDIES = (b"[]", b"{}", b'{"runs": []}', b'{"runs": {"a": []}}', b'{"rows": [1]}', b'{"report": {"tables": [{}]}}')
EXTRAS = (
    "study.json",
    "a/datalist.json",
    "a/calibration.csv",
    "a/a_record.json",
    "a/p/p_slice.npz",
    "a/p_overview.png",
)


@tried(6, 150)
def test_a_report_of_any_tables_is_a_page_or_a_sentence(amount, tmp_path):
    table = st.tuples(COLUMNS, st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=4)).map(as_csv)
    content = st.one_of(st.sampled_from((*STUDIES, b"[" * 5000, SOUND)), st.binary(max_size=9))

    @inputs(amount, st.one_of(st.just(SOUND), table), names(), st.sampled_from(EXTRAS), content)
    def ends(cells, name, extra, other):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            runs, page = Path(folder) / "runs", Path(folder) / "page.html"
            (runs / "a" / "p").mkdir(parents=True)
            (runs / "a" / "cases.csv").write_bytes(cells)
            (runs / extra).write_bytes(other)
            write_atomic(runs / "b" / "cases.csv", SOUND)
            with contextlib.suppress(OSError, ValueError):
                (runs / "b").rename(runs / name)
            said = refusal(lambda: report(str(runs), str(page)), runs, "a has", "study", "report")
            assert bool(said) != page.is_file()


def as_csv(table: tuple[list[str], list[list[str]]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([table[0], *table[1]])
    return text.getvalue().encode(errors="surrogatepass")


WORDS = st.one_of(st.none(), st.integers(-2, 2), names(), st.just([]), st.just({}), st.just(["x.nii.gz"]))


@tried(5, 150)
@pytest.mark.parametrize("workflow", ["inferring", "evaluating"])
def test_a_workflow_given_any_datalist_runs_its_cases_or_ends_in_a_sentence(amount, workflow, bundle, tmp_path):
    write_case(tmp_path / "anna", shape=(20, 20, 8))
    good = {
        "case": "anna",
        "image": ["anna/anna_t2.nii.gz"],
        "target": "anna/anna_t1ce.nii.gz",
        "label": "anna/anna_seg.nii.gz",
    }
    entry = st.dictionaries(st.sampled_from(("case", "image", "target", "label")), WORDS).map(lambda odd: good | odd)
    section = st.one_of(WORDS, st.lists(st.one_of(entry, WORDS), max_size=3))
    content = st.one_of(
        st.dictionaries(st.sampled_from(("test", "training", "sources")), st.one_of(section, WORDS)), WORDS
    )

    @inputs(amount, content, st.sampled_from(("out", "file/out", "anna", "x" * 300, "loop")))
    def ends(datalist, out):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            place = Path(folder)
            (place / "file").touch()
            (place / "loop").symlink_to("loop")
            shutil.copytree(tmp_path / "anna", place / "anna")
            (place / "datalist.json").write_text(json.dumps(datalist))
            before = {file for file in tmp_path.rglob("*") if file.is_file()}
            said = refusal(lambda: run_workflow(bundle, workflow, place, place / out), place, "datalist", "anna")
            new = {file for file in tmp_path.rglob("*") if file.is_file()} - before
            assert all(file.is_relative_to(place / out) for file in new)
            assert said or new


def run_workflow(bundle: Path, workflow: str, data: Path, out: Path) -> None:
    """As `python -m monai.bundle run WORKFLOW` does."""
    configs = ["inference"] if workflow == "inferring" else ["train", "evaluate"]
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in configs])
    tiny = {"widths": [2] * 5, "patch_size": [32, 32, 16], "spacing_mm": [1.2, 1.2, 4], "perceptor_disabled": True}
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(data), "output_dir": str(out), **tiny})
    for name in ("initialize", workflow):
        parser.get_parsed_content(name)
