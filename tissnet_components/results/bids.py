"""Masks as BIDS derivatives, for programs that read studies in that form (https://bids.neuroimaging.io)."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tissnet_components.errors import UserError
from tissnet_components.files import copy_atomic, to_json, write_atomic
from tissnet_components.results.files import NATIVE, case_file, prepared_scans

ROOT = Path("derivatives", "tissnet")  # below the folder of the results
BIDS_VERSION = "1.10.0"
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?")
SPACES = {"t1": "T1w", "t1ce": "T1wGd", "t2": "T2w", "flair": "FLAIR"}  # whose grid a mask lies on


def entities_of(case: str) -> tuple[str, ...]:
    """Subject and, where the name tells it, session: sub-07 and ses-1 of sub-07_ses-1, sub-P7 of P_7."""
    named = SUBJECT.fullmatch(case)
    return tuple(filter(None, named.groups())) if named else (f"sub-{re.sub('[^A-Za-z0-9]', '', case)}",)


def check_bids(cases: Sequence[str]) -> None:
    """Refuse cases that BIDS, which allows letters and digits alone, cannot name or tell apart.

    Raises:
        ValueError: such a case.
    """
    names = {case: "_".join(entities_of(case)) for case in cases}
    times = Counter(names.values())
    for case, name in names.items():
        if name == "sub-" or times[name] > 1:
            raise UserError(
                f"--bids would call {case} {name}, which is no name of its own; give the cases other letters or digits"
            )


def write_bids(out: Path, case: str, names: Mapping[str, int], algorithm: str, version: str) -> None:
    """File the masks of a case below ``out/derivatives/tissnet``, each with what it lies on, and what wrote them.

    Args:
        names: what each label shows.
        algorithm, version: what made the masks.
    """
    entities = entities_of(case)
    summary = json.loads(case_file(out, case, "summary").read_bytes())
    scans = summary.get("raw", {}).get("scans", {})
    grids = {"seg": ("common", "the prepared scans'") if prepared_scans(out, case) else ("orig", "the first scan's")}
    grids |= {NATIVE[name]: (SPACES[name], f"that of {scan['file']}") for name, scan in scans.items()}
    for kind, (space, grid) in grids.items():
        mask = case_file(out, case, kind)
        if mask.is_file():
            file = out.joinpath(ROOT, *entities, "anat", f"{'_'.join(entities)}_space-{space}_dseg.nii.gz")
            file.parent.mkdir(parents=True, exist_ok=True)
            copy_atomic(mask, file)
            sidecar = file.with_name(file.name.replace(".nii.gz", ".json"))
            write_atomic(sidecar, to_json({"SpatialReference": grid, "Manual": False}))
    table = "".join(f"{label}\t{name}\n" for name, label in sorted(names.items(), key=lambda item: item[1]))
    write_atomic(out / ROOT / "dseg.tsv", f"index\tname\n{table}".encode())
    description = {
        "Name": "Brain tumors, segmented by TISS-Net (research, not a medical device)",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": algorithm, "Version": version}],
    }
    write_atomic(out / ROOT / "dataset_description.json", to_json(description))
