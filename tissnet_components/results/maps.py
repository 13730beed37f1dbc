"""Writing what a cascade found: maps and pictures, each under its case, whole, and never over a file of others."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.data import NibabelWriter
from monai.transforms import SaveImaged

from tissnet_components.errors import UserError
from tissnet_components.files import whole
from tissnet_components.results.overview import overview, save_slices
from tissnet_components.scans.nifti import is_nifti

MARK = b"TISS-Net"  # in the header's description, of what may be replaced


def refuse_foreign(file: str | os.PathLike) -> None:
    """Raise ValueError if a file is there that `WholeFileWriter` did not write: the expert's label has the mask's name.

    Files under other names than NIfTI's are not looked at.
    """
    if not os.path.exists(file) or not is_nifti(os.path.basename(file)):
        return
    try:
        description = nib.load(file).header["descrip"].item()
    except Exception:  # nibabel raises a dozen types; whatever it is, it is not ours
        description = b""
    if description != MARK:
        raise UserError(f"{file} is there and is no result of TISS-Net; give another folder for the results")


class WholeFileWriter(NibabelWriter):
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
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> nib.Nifti1Image:
        image = super().create_backend_obj(*args, **kwargs)
        image.header["descrip"] = MARK
        return image

    def write(self, filename: str | os.PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        refuse_foreign(filename)
        with whole(filename) as unfinished:
            super().write(unfinished, verbose=verbose, **obj_kwargs)


class SaveImageCased(SaveImaged):
    """MONAI's ``SaveImaged``, writing ``output_dir/CASE/CASE_postfix.nii.gz`` in the image's own geometry.

    A map that the network does not have, such as the error of a compared method, is left out.

    Raises:
        ValueError: as `whole`, for example when the disk is full.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str, output_postfix: str, output_dtype: DtypeLike = np.float32
    ) -> None:
        super().__init__(
            keys,
            allow_missing_keys=True,
            output_dir=output_dir,
            output_postfix=output_postfix,
            output_dtype=output_dtype,
            resample=False,
            writer=WholeFileWriter,
            output_name_formatter=lambda meta, _: {"subject": meta["case"], "idx": None},
            print_log=False,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        try:
            return super().__call__(data)
        except RuntimeError as error:  # MONAI 1.6 says that no writer suits, and then, as text, what the writer raised
            kind, _, reason = str(error).strip().splitlines()[-1].partition(": ")
            if kind.rpartition(".")[2] != UserError.__name__:
                raise
            raise UserError(reason) from error


class SaveImageOverviewd(SaveImaged):
    """Write ``output_dir/CASE/CASE_overview.png``, one slice of every map that is there.

    A ``SaveImaged``, because MONAI Label leaves these out and writes the answer itself.

    Args:
        keys: maps in display order, of the names that ``report.figures.overview`` knows, and ``image``: the source.
        slices: also keep the slice as ``CASE_slice.npz``, from which the report compares methods.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str, source_names: Sequence[str] = (), slices: bool = False
    ) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=True)
        self.output_dir, self.source_names, self.slices = Path(output_dir), source_names, slices

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        maps = {"source" if key == "image" else key: data[key].cpu().numpy() for key in self.key_iterator(data)}
        case, affine = data["image"].meta["case"], np.asarray(data["image"].affine)
        path = self.output_dir / case / f"{case}_overview.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        overview(maps, path, title=case, affine=affine, source_names=self.source_names)
        if self.slices:
            save_slices(maps, path.with_name(f"{case}_slice.npz"), affine)
        return data
