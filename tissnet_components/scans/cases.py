"""Find the cases of a folder or datalist, and read them one by one, a bad one with the reason."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from monai.data import Dataset
from monai.transforms import Transform, apply_transform
from tissnet_components.errors import BadCase, UserError, in_one_sentence
from tissnet_components.files import user_path
from tissnet_components.scans.datalist import FILE_KEYS, as_list, lacking, load_datalist, read_datalist, refuse_lacking
from tissnet_components.scans.naming import scans_below
from tissnet_components.scans.nifti import (
    check_intensities,
    check_label,
    check_readable,
    check_same_grid,
    check_three_axes,
)
from tqdm import tqdm

FEW_CASES = 5


class CaseDataset(Dataset):
    """MONAI's dataset of cases, in which a bad one is no exception: its item holds ``case`` and ``failed``, the reason.

    Args:
        data: datalist entries.
        transform: reads and prepares one.
        keys: what an entry must have and is handed on besides ``case``; inference needs ``image`` alone.
        prepare: makes of an entry one that can be read, see `RawPatients`.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Transform,
        keys: Sequence[str] = ("image",),
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.keys, self.prepare = ("case", *keys), prepare

    def _transform(self, index: int) -> dict[str, Any] | list[Any]:
        entry = self.data[index]
        try:
            if "unusable" in entry:
                raise BadCase(entry["unusable"])
            refuse_lacking(entry, lacking(entry, self.keys))
            entry = self.prepare(entry) if self.prepare else entry
            return apply_transform(self.transform, {key: entry[key] for key in self.keys if key in entry})
        except Exception as error:  # whatever it is, the other cases go on
            return {"case": entry["case"], "failed": in_one_sentence(error)}


def find_scans(
    dataset_dir: str, modalities: Sequence[str], datalist: str, section: str, any_subset: bool = False
) -> list[dict[str, Any]]:
    """The cases to run: a section of the datalist where there is one, else every scan in the folder.

    Nothing is opened. A file that a case of the folder lacks is listed under the name it should have, and a case with
    two files of one modality is ``unusable``, with the reason.

    Args:
        dataset_dir: a folder of scans, one file per modality, named as in BraTS; used when there is no datalist.
        modalities: the source modalities, in the order the network expects.
        datalist: JSON with cases by section.
        section: training, validation or test.
        any_subset: None stands for a contrast that a case of the folder lacks, or that no image of the datalist is.

    Raises:
        ValueError: nothing found, a name not fit for a folder, or a bad datalist.
    """
    if os.path.isfile(user_path(datalist)):
        named = (read_datalist(user_path(datalist))[1] if any_subset else None) or modalities
        sources = [name for name in modalities if name in named]
        listed = load_datalist(datalist, section, sources)
        return [case | {"image": _in_places(case["image"], sources, modalities)} for case in listed]
    found = scans_below(user_path(dataset_dir), modalities, any_subset)
    if not found:
        raise UserError(f"{dataset_dir} holds neither datalist.json nor scans like CASE_t1.nii.gz; give --dataset_dir")
    return found


def _in_places(files: Sequence[str], names: Sequence[str], modalities: Sequence[str]) -> list[str | None]:
    """The files of the names, each in its modality's place; as they are where every modality has one."""
    if list(names) == list(modalities):
        return list(files)
    file_of = dict(zip(names, files, strict=True))
    return [file_of.get(name) for name in modalities]


def check_case(case: Mapping) -> None:
    """Read every file of a case (``target`` and ``label`` may be absent) and check it, alone and against the others.

    Raises:
        BadCase: for the first thing that is wrong.
    """
    if case.get("unusable"):
        raise BadCase(case["unusable"])
    grids = {}
    for key in FILE_KEYS:
        for file in as_list(case.get(key)):
            image = check_readable(file)
            check_three_axes(image.shape, file)
            (check_label if key == "label" else check_intensities)(np.asanyarray(image.dataobj), file)
            grids[str(file)] = (image.shape, image.affine)
    check_same_grid(grids)


def usable_cases(cases: Sequence[Mapping], workers: int | None = None) -> tuple[list[Mapping], dict[str, str]]:
    """Check cases in parallel, with a progress bar when there are more than a few.

    Threads do: nearly all the time goes into unpacking gzip, which runs without Python's lock.

    Returns:
        the good cases in their order, and case name -> reason for the others.
    """
    with ThreadPoolExecutor(workers) as pool:
        quiet = len(cases) <= FEW_CASES
        reasons = list(tqdm(pool.map(_reason, cases), "checking cases", len(cases), unit="case", disable=quiet))
    good = [case for case, reason in zip(cases, reasons, strict=True) if not reason]
    failed = {case["case"]: reason for case, reason in zip(cases, reasons, strict=True) if reason}
    return good, failed


def _reason(case: Mapping) -> str | None:
    try:
        check_case(case)
    except BadCase as error:
        return str(error)
    return None
