"""Running cohorts and writing what was found; the inferer itself is tested with the cascade."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort import oblique_affine, save, write_case, write_datalist
from ignite.engine import Events
from monai.data import DataLoader
from monai.inferers import SimpleInferer
from tissnet_components.errors import UserError, report_failed
from tissnet_components.inference import CascadeInferer, CaseEvaluator
from tissnet_components.scans import nifti
from tissnet_components.scans.cases import CaseDataset, find_scans
from tissnet_components.scans.loading import LoadCased
from tissnet_components.scans.nifti import check_readable
from torch import nn

SOURCES = ["t1", "t1ce", "t2"]
OBLIQUE = oblique_affine((0.9, 1.1, 5))


@pytest.fixture
def cases(tmp_path) -> list[dict]:
    return [write_case(tmp_path / name, seed) for seed, name in enumerate(("anna", "bert", "carl"))]


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def read(cases: list[dict], *keys: str) -> CaseDataset:
    return CaseDataset(cases, LoadCased(keys), keys)


def failures(dataset: CaseDataset) -> dict[str, str]:
    return {item["case"]: item["failed"] for item in dataset if "failed" in item}


def test_a_dataset_hands_on_only_what_is_needed(cases):
    assert [list(item) for item in read(cases, "image")] == [["case", "image"]] * 3


def test_a_bad_case_is_an_item_with_the_reason_and_the_others_are_read(cases):
    Path(cases[1]["image"][2]).write_bytes(b"no image")
    dataset = read(cases, "image")
    assert [("failed" in item, item["case"]) for item in dataset] == [(False, "anna"), (True, "bert"), (False, "carl")]
    assert "bert_t2.nii.gz cannot be read as NIfTI" in failures(dataset)["bert"]


def test_a_bad_label_does_not_matter_where_no_label_is_needed(cases):
    Path(cases[0]["label"]).unlink()
    assert not failures(read(cases, "image"))
    assert list(failures(read(cases, "image", "target", "label"))) == ["anna"]


def test_a_case_without_a_needed_entry_says_so(cases):
    del cases[2]["label"], cases[2]["target"]
    found = failures(read(cases, "image", "target", "label"))
    assert found == {"carl": "case carl has no target, label; add it to the datalist or leave the case out"}


def test_every_file_of_a_case_is_read_once(cases, monkeypatch):
    read_files = []

    def counted(file, *rest):
        read_files.append(str(file))
        return check_readable(file, *rest)

    monkeypatch.setattr(nifti, "check_readable", counted)
    list(read(cases, "image"))
    assert sorted(read_files) == sorted(file for case in cases for file in case["image"])


class Answer(nn.Module):
    """Runs out of memory on the second case."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise MemoryError
        return image[:, :1]


def evaluator(cases: list[dict], **settings) -> CaseEvaluator:
    loader = DataLoader(read(cases, "image"), batch_size=1)
    return CaseEvaluator(torch.device("cpu"), loader, Answer(), **settings)


def test_an_evaluator_runs_the_other_cases_and_keeps_the_reasons(cases):
    Path(cases[0]["image"][0]).unlink()
    cases.append(write_case(Path(cases[0]["image"][0]).parents[1] / "dora", 3))
    seen, engine = [], evaluator(cases)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append([case["case"] for case in engine.state.batch])
    )
    engine.run()
    assert seen == [[], ["bert"], [], ["dora"]]
    assert list(engine.failed) == ["anna", "carl"]
    assert "does not exist" in engine.failed["anna"]
    assert engine.failed["carl"].startswith("out of memory (for a whole image)")


def test_a_case_that_cannot_be_written_is_kept_with_the_reason(cases):
    def full(data):
        raise UserError("no room") if data["case"] == "bert" else None

    engine = evaluator(cases[1:2], postprocessing=full)
    engine.run()
    assert engine.failed == {"bert": "no room"}


def test_a_datalist_says_what_to_run(tmp_path, cases):
    datalist = write_datalist(tmp_path, training=cases[:1], test=cases[1:])
    assert [case["case"] for case in find_scans(str(tmp_path), SOURCES, str(datalist), "test")] == ["bert", "carl"]


def test_no_case_of_a_datalist_or_folder_is_filed_outside_the_results(tmp_path, cases):
    datalist = write_datalist(tmp_path, test=[cases[0] | {"case": "../anna"}])
    with pytest.raises(ValueError, match=r"datalist.json names a case '../anna', which cannot be a folder's name"):
        find_scans(str(tmp_path), SOURCES, str(datalist), "test")
    write_case(tmp_path / "a\nb")
    with pytest.raises(ValueError, match=r"names a case 'a\\nb'"):
        find_scans(str(tmp_path), SOURCES, "none.json", "test")


def test_without_a_datalist_every_scan_of_the_folder_is_run(tmp_path, cases):
    found = find_scans(str(tmp_path), SOURCES, str(tmp_path / "datalist.json"), "test")
    assert found == [{"case": case["case"], "image": case["image"]} for case in cases]


def test_modalities_come_in_the_networks_order(tmp_path, cases):
    found = find_scans(str(tmp_path), ["flair", "t1"], "none.json", "test")
    assert found[0]["image"] == [cases[0]["target"], cases[0]["image"][0]]


def test_a_scan_without_a_modality_fails_alone_under_the_name_that_is_missing(tmp_path, cases):
    Path(cases[1]["image"][2]).unlink()
    found = failures(read(find_scans(str(tmp_path), SOURCES, "none.json", "test"), "image"))
    assert list(found) == ["bert"]
    assert f"{cases[1]['image'][2]} does not exist" in found["bert"]


def test_a_case_with_two_files_of_a_modality_fails_alone(tmp_path, cases):
    twin = save(Path(cases[1]["image"][0].removesuffix(".gz")), np.ones((4, 4, 4), np.int16), np.eye(4))
    found = failures(read(find_scans(str(tmp_path), SOURCES, "none.json", "test"), "image"))
    assert found == {"bert": f"both {twin} and {cases[1]['image'][0]} are t1 of bert; keep one of them"}


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither datalist"):
        find_scans(str(tmp_path), SOURCES, "none.json", "test")


def test_failed_cases_are_listed_and_end_with_status_1(capsys):
    with pytest.raises(SystemExit) as ended:
        report_failed({"bert": "b_t2.nii.gz does not exist", "carl": "c_t1.nii.gz is empty"})
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "2 not run:",
        "  bert: b_t2.nii.gz does not exist",
        "  carl: c_t1.nii.gz is empty",
    ]


def test_a_run_without_failures_ends_quietly(capsys):
    report_failed({})
    assert capsys.readouterr() == ("", "")


class Unsure(nn.Module):
    """Answers NaN."""

    def cascade(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fine": image, "error": image * math.nan}


def test_an_answer_that_is_no_number_is_refused_but_for_a_training():
    inferer, image = CascadeInferer(SimpleInferer()), torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"the network answers with NaN or infinity \(error\): its weights are damaged"
    ):
        inferer(image, Unsure().eval())
    assert inferer(image, Unsure().train())["error"].isnan().all()


def test_results_below_the_scans_are_not_taken_for_scans(tmp_path):
    write_case(tmp_path / "anna")
    write_case(tmp_path / "results" / "anna")
    for name in SOURCES:
        (tmp_path / "results" / "anna" / f"anna_{name}.nii.gz").unlink()
    assert [case["case"] for case in find_scans(str(tmp_path), SOURCES, "none.json", "test")] == ["anna"]


def test_a_datalist_of_other_sources_is_refused(tmp_path):
    datalist = tmp_path / "datalist.json"
    datalist.write_text('{"sources": ["t2"], "test": [{"case": "anna", "image": ["anna_t2.nii.gz"]}]}')
    with pytest.raises(ValueError, match=r"has the sources \['t2'\], expected .*; set --source_modalities"):
        find_scans(str(tmp_path), SOURCES, str(datalist), "test")
    assert len(find_scans(str(tmp_path), ["t2"], str(datalist), "test")) == 1


def test_a_network_of_fewer_sources_takes_its_own_out_of_a_datalist(tmp_path):
    datalist = tmp_path / "datalist.json"
    entry = '{"case": "anna", "image": ["anna_t1.nii.gz", "anna_t2.nii.gz"]}'
    datalist.write_text(f'{{"sources": ["t1", "t2"], "test": [{entry}]}}')
    (case,) = find_scans(str(tmp_path), ["t2"], str(datalist), "test")
    assert case["image"] == [str(tmp_path / "anna_t2.nii.gz")]
    (case,) = find_scans(str(tmp_path), ["t2", "t1"], str(datalist), "test")
    assert case["image"] == [str(tmp_path / "anna_t2.nii.gz"), str(tmp_path / "anna_t1.nii.gz")]


def test_a_case_with_fewer_images_than_named_sources_is_refused(tmp_path):
    datalist = tmp_path / "datalist.json"
    datalist.write_text('{"sources": ["t1", "t2"], "test": [{"case": "anna", "image": ["anna_t2.nii.gz"]}]}')
    with pytest.raises(ValueError, match=r"names the sources \['t1', 't2'\], but anna has 1 images"):
        find_scans(str(tmp_path), ["t2"], str(datalist), "test")
