"""Writing what a cascade found: maps and pictures, each under its case, whole, and never over a file of others."""

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.data import NibabelWriter
from monai.transforms import MapTransform, SaveImaged
from monai.utils import ensure_tuple_rep
from tissnet_components.errors import BadCase
from tissnet_components.files import atomic_write
from tissnet_components.regions import WHOLE
from tissnet_components.results.dicom_seg import check_dicom_seg, write_dicom_seg
from tissnet_components.results.files import MARK, case_file, refuse_foreign
from tissnet_components.results.overview import overview, save_slices
from tqdm import tqdm


class AtomicNiftiWriter(NibabelWriter):
    """Voxels as they are, in a NIfTI file that appears under its final name only when it is whole.

    MONAI 1.6 resamples even where nothing is to change, takes a volume without channel for a plane, and then fails
    where the first two axes do not lie in the plane of the patient's first two, as in a sagittal scan.

    Raises:
        ValueError: the disk is full, or the name belongs to a file that is not one of these.
    """

    @classmethod
    def resample_if_needed(
        cls, data_array: NdarrayOrTensor, affine: NdarrayOrTensor | None = None, **_: Any
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor | None]:
        return data_array, affine

    @classmethod
    def create_backend_obj(cls, data_array: Any, *args: Any, **kwargs: Any) -> nib.Nifti1Image:
        image = super().create_backend_obj(data_array, *args, **kwargs)
        slices_last = np.asfortranarray(image.dataobj)  # as in the file: nibabel takes six times as long to turn slices
        image = nib.Nifti1Image(slices_last, image.affine, image.header)
        image.header["descrip"] = MARK
        return image

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        refuse_foreign(filename)
        with atomic_write(filename) as unfinished:
            super().write(unfinished, verbose=verbose, **obj_kwargs)


class SaveImageCased(SaveImaged):
    """Write ``output_dir/CASE/CASE_postfix.nii.gz`` of each map, in the image's own geometry, all at once.

    MONAI's ``SaveImaged``, which this replaces, takes what follows the last dot of a case's name for an ending.
    A map that the network does not have, such as the error of a compared method, is left out.

    Args:
        output_postfix: one of the `FILES`, for each key.
        output_dtype: of all, or for each key.
        outputs: the postfixes that are wanted; by default all.

    Raises:
        ValueError: as `atomic_write`, for example when the disk is full, or the name belongs to a file of others.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        output_postfix: str | Sequence[str],
        output_dtype: DtypeLike | Sequence[DtypeLike] = np.float32,
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=True)
        postfixes, dtypes = (ensure_tuple_rep(value, len(self.keys)) for value in (output_postfix, output_dtype))
        self.files = dict(zip(self.keys, zip(postfixes, dtypes, strict=True), strict=True))
        self.output_dir, self.outputs = output_dir, outputs

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        with ThreadPoolExecutor() as pool:  # packing runs without Python's lock
            list(pool.map(lambda key: self._write(data[key], *self.files[key]), self.key_iterator(data)))
        return data

    def _write(self, image: Any, postfix: str, dtype: DtypeLike) -> None:
        if self.outputs is None or postfix in self.outputs:
            writer = AtomicNiftiWriter(output_dtype=dtype)
            writer.set_data_array(image, channel_dim=0)
            writer.set_metadata(image.meta, resample=False)
            writer.write(case_file(self.output_dir, image.meta["case"], postfix))


class SaveImageOverviewd(SaveImaged):
    """Write ``output_dir/CASE/CASE_overview.png``, one slice of every map that is there.

    A ``SaveImaged``, because MONAI Label leaves these out and writes the answer itself.

    Args:
        keys: maps in display order, of the names that `overview` knows, and ``image``: the source.
        slices: also keep the slice as ``CASE_slice.npz``, from which the report compares methods.
        consensus: whether ``fine`` is the consensus.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        source_names: Sequence[str] = (),
        slices: bool = False,
        consensus: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=True)
        self.output_dir, self.source_names, self.slices = Path(output_dir), source_names, slices
        self.answer = "consensus" if consensus else "fine"

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        maps = {"source" if key == "image" else key: data[key].cpu().numpy() for key in self.key_iterator(data)}
        case, affine = data["image"].meta["case"], np.asarray(data["image"].affine)
        overview(
            maps,
            case_file(self.output_dir, case, "overview"),
            title=case,
            affine=affine,
            source_names=self.source_names,
            answer=self.answer,
        )
        if self.slices:
            save_slices(maps, case_file(self.output_dir, case, "slice"), affine)
        return data


class CheckDicomSegd(MapTransform):
    """Refuse, before anything is computed, a scan to which no DICOM SEG can refer, and print what its headers spoil.

    Args:
        keys: the image, as `LoadImageCased` loads it.
        segment, bundle_root, regions: as of `SaveImageDicomSegd`.

    Raises:
        BadCase: the first scan is no DICOM series, or as `check_dicom_seg`.
    """

    def __init__(
        self, keys: KeysCollection, segment: Mapping[str, str], bundle_root: str, regions: Sequence[str] = (WHOLE,)
    ) -> None:
        super().__init__(keys)
        self.terms = mask_terms(segment, bundle_root, regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        source = data[self.keys[0]].meta
        if "dicom_files" not in source:
            raise BadCase(f"a DICOM SEG refers to a DICOM series, but {source['case']} has none; leave it out")
        if doubts := check_dicom_seg(source["dicom_files"], **self.terms):
            tqdm.write(f"{source['case']}: {doubts}")
        return data


class SaveImageDicomSegd(SaveImaged):
    """Write ``output_dir/CASE/CASE_seg.dcm``, the mask as DICOM SEG, which refers to the series of the first scan.

    A ``SaveImaged``, because MONAI Label leaves these out.

    Args:
        keys: the mask, on the grid of the scan.
        segment: what it shows, see `write_dicom_seg`.
        bundle_root: the bundle, whose metadata.json tells the name and version of the algorithm.
        regions: that the mask names; of several, it is their label map.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        segment: Mapping[str, str],
        bundle_root: str,
        regions: Sequence[str] = (WHOLE,),
    ) -> None:
        super().__init__(keys, output_dir=output_dir)
        self.output_dir, self.terms = output_dir, mask_terms(segment, bundle_root, regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        mask, source = data[self.keys[0]], data["image"].meta
        file = case_file(self.output_dir, source["case"], "dicom_seg")
        write_dicom_seg(mask[0].cpu().numpy(), np.asarray(mask.affine), source["dicom_files"], file, **self.terms)
        return data


def mask_terms(segment: Mapping[str, str], bundle_root: str, regions: Sequence[str]) -> dict[str, Any]:
    """What a mask shows, and what made it, as DICOM SEG and BIDS tell."""
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return {"segment": segment, "algorithm": metadata["name"], "version": metadata["version"], "regions": regions}
