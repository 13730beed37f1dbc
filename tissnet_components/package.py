"""One zip per bundle that runs without this repository, and a check of what somebody downloaded.

Layout, as `monai.bundle download` expects it: one folder of the bundle's name with the bundle's files, its weights, a
copy of `tissnet_components` but for `LEFT_OUT` (Python finds it, since the bundle's folder is where `monai.bundle run`
starts), and `SHA256SUMS`, which `sha256sum --check` reads too.
"""

import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from tissnet_components.errors import UserError
from tissnet_components.files import files_below

OUT = Path("dist")
PACKAGE = Path(__file__).parent
TRAINED = ("model", "perceptor", "any_missing", "any_missing_perceptor")
WEIGHTS = tuple(f"models/{name}.{ending}" for name in TRAINED for ending in ("pt", "json"))
BUNDLE_FILES = ("LICENSE", "large_files.yml", "configs/**/*", "docs/**/*", *WEIGHTS)
REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
LEFT_OUT = ("phantom", "prepare", "report", "study")  # rooms that inference and training do without
SUMS = "SHA256SUMS"
PROGRAMS = (".py", ".so", ".pyd")
VERSION = r"\d+(?:\.\w+)+"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def package(bundle: Path | None = None, out: Path = OUT) -> None:
    """Write OUT/NAME_vVERSION.zip: a bundle that runs wherever its required packages are installed.

    Example:
        python -m tissnet_components package --out dist

    The same files give the same bytes, every time and everywhere.

    Args:
        bundle: folder of the bundle; by default every folder in bundles.
        out: folder for the zips; made if needed.

    Raises:
        ValueError: a bundle lacks a file, such as its weights, or its changelog does not name its version.
    """
    folders = (
        [Path(bundle)]
        if bundle
        else sorted(path.parents[1] for path in Path("bundles").glob("*/configs/metadata.json"))
    )
    if not folders:
        raise UserError("there is no bundles folder here; start in the repository, or give --bundle its folder")
    for path in [package_bundle(folder, Path(out)) for folder in folders]:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256(path.read_bytes())}")


def package_bundle(folder: Path, out: Path) -> Path:
    """Write the zip of one bundle and return its path; raises ValueError as ``package`` does."""
    files = bundle_files(folder)
    version = checked_version(folder, files)
    entries = {name: file.read_bytes() for name, file in files.items()}
    entries[SUMS] = "".join(f"{sha256(entries[name])}  {name}\n" for name in sorted(entries)).encode()
    name = folder.resolve().name
    return write_zip(out / f"{name}_v{version}.zip", {f"{name}/{file}": data for file, data in entries.items()})


def bundle_files(folder: Path) -> dict[str, Path]:
    """What belongs into the zip, by its path in the bundle; results, checkpoints and hidden files do not."""
    found = {file.relative_to(folder): file for pattern in BUNDLE_FILES for file in folder.glob(pattern)}
    found |= {
        Path(PACKAGE.name) / file.relative_to(PACKAGE): file
        for file in PACKAGE.rglob("*")
        if file.relative_to(PACKAGE).parts[0] not in LEFT_OUT
    }
    return {
        name.as_posix(): file
        for name, file in found.items()
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


def checked_version(folder: Path, files: Iterable[str]) -> str:
    """The version in the metadata; raises ValueError when a file is missing or the changelog does not name it."""
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        cure = "restore the file"
        if missing == ["models/model.pt"]:
            listed = (folder / "large_files.yml").is_file()
            cure = (
                f"run `python -m monai.bundle download_large_files --bundle_path {folder}`" if listed else "train first"
            )
        raise UserError(f"{folder} has no {missing[0]}: {cure}")
    version, changelog = read_version((folder / "configs" / "metadata.json").read_bytes(), folder)
    if version not in changelog:
        raise UserError(f"{folder}/configs/metadata.json has version {version} but no changelog line for it; add one")
    return version


def read_version(metadata: bytes, path: Path) -> tuple[str, dict[str, str]]:
    """The version in metadata.json and the changelog; raises ValueError, naming `path`, when there is none."""
    try:
        content = json.loads(metadata)
        version, changelog = content["version"], dict(content["changelog"])
        fits = re.fullmatch(VERSION, version)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = None
    if not fits:
        raise UserError(f"configs/metadata.json of {path} tells no version such as 0.1.0, or no changelog; mend it")
    return version, changelog


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    """Write a zip under its final name only when it is whole: sorted, without times, uncompressed.

    Uncompressed because versions of zlib differ in what they write; weights would hardly shrink anyway.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # a Unix file, on Windows too
                archive.writestr(entry, entries[name])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def verify(bundle: Path, version: str | None = None) -> None:
    """Check a packaged bundle, a zip or the folder it was unpacked to, against its list of SHA-256 sums.

    Example:
        python -m tissnet_components verify --bundle tissnet_vs_v0.1.0.zip

    This finds damage and later edits. The list is not signed: whoever can replace the zip can replace the list, so
    compare the zip's own sum with the one in the release's notes.

    Args:
        bundle: the zip, or the folder. A folder may hold further files, such as results, but no configs and programs.
        version: the version you expect; of a zip, by default the one in its name.

    Raises:
        ValueError: not a packaged bundle, without weights, of another version, changed, or with paths that lead out.
    """
    path = Path(bundle)
    if os.path.isdir(path):
        count, found = check_files(path, lambda file: (path / file).read_bytes(), runnable(path))
        name = path.resolve().name
    else:
        name, count, found = check_zip(path)
    expected = str(version) if version else version_in_name(path)
    if expected and expected != found:
        raise UserError(
            f"{path} holds version {found}, expected {expected}; get the other zip, or give --version {found}"
        )
    print(f"{name} {found}: {count} files as they were packaged")


def runnable(folder: Path) -> set[str]:
    """The files of a folder that a run in it may follow: its configs, and programs, which Python finds there first."""
    names = {file.relative_to(folder) for file in files_below(folder)}
    configs = {name for name in names if name.parts[0] == "configs"}
    return {name.as_posix() for name in configs | {name for name in names if name.suffix in PROGRAMS}}


def version_in_name(path: Path) -> str | None:
    """0.1.0 of NAME_v0.1.0.zip; None where a name tells no version."""
    match = re.fullmatch(rf".+_v({VERSION})\.zip", path.name)
    return match and match[1]


def check_zip(path: Path) -> tuple[str, int, str]:
    """Check a zip without unpacking it: name of its folder, number of files, version; raises as ``verify``."""
    if not os.path.isfile(path):
        raise UserError(f"there is no bundle {path}; give a zip or the folder it was unpacked to")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            refuse_climbing(names, path)
            links = [entry.filename for entry in archive.infolist() if stat.S_ISLNK(entry.external_attr >> 16)]
            if links:
                raise UserError(f"{path} holds {links[0]}, which is a link and may lead out; do not unpack it")
            roots = {PurePosixPath(name).parts[0] for name in names}
            if len(roots) != 1:
                raise UserError(f"{path} holds {len(roots)} folders at its top, expected the bundle's alone")
            root = roots.pop()
            count, version = check_files(
                path, lambda file: archive.read(f"{root}/{file}"), {name.removeprefix(f"{root}/") for name in names}
            )
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a whole zip ({error}); download it again") from error
    except (RuntimeError, zlib.error) as error:  # encrypted, packed in another way, damaged
        raise UserError(f"{path} cannot be unpacked ({error}); take the zip of a release") from error
    return root, count, version


def check_files(path: Path, read: Callable[[str], bytes], present: set[str] | None = None) -> tuple[int, str]:
    """Compare every listed file with its sum; returns their number and the version in the metadata.

    Args:
        path: what is checked, for the messages.
        read: gives a file's bytes by its path in the bundle.
        present: files that must be listed.

    Raises:
        ValueError: as ``verify``.
    """
    try:
        lines = read(SUMS).decode().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (KeyError, OSError, ValueError) as error:
        raise UserError(
            f"{path} has no readable {SUMS}, so it is not a packaged bundle; take one of a release"
        ) from error
    refuse_climbing(sums, path)
    if "models/model.pt" not in sums:
        raise UserError(f"{path} has no weights (models/model.pt); take the zip of a release")
    unlisted = sorted((present or set()) - sums.keys() - {SUMS})
    if unlisted:
        raise UserError(f"{path} holds {unlisted[0]}, which {SUMS} does not list; download it again")
    for name, digest in sums.items():
        try:
            data = read(name)
        except (KeyError, OSError) as error:
            raise UserError(f"{path} has lost {name}; download it again") from error
        if sha256(data) != digest:
            raise UserError(f"{name} of {path} is not what was packaged; download it again")
    if "configs/metadata.json" not in sums:
        raise UserError(f"{path} has no configs/metadata.json; take the zip of a release")
    return len(sums), read_version(read("configs/metadata.json"), path)[0]


def refuse_climbing(names: Iterable[str], path: Path) -> None:
    """Raise ValueError on a path that leads out of the folder it is unpacked to, or names nothing in it."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts:
            raise UserError(f"{path} holds the path {name!r}, which names no file; take the zip of a release")
        if name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
            raise UserError(f"{path} holds the path {name!r}, which leads out of its folder; do not unpack it")


def sha256(data: bytes) -> str:
    """The SHA-256 sum, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
