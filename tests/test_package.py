"""The zips: the same bytes every time, whole, and refused when they are not; and what docs/guide/zip.md says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundle_copies import NAMES, any_subset_weights, bundle_with_weights, tiny_bundle
from cohort import write_case
from monai.bundle import ConfigParser
from tissnet_components.package import LEFT_OUT, bundle_files, package, package_bundle, sha256, verify, write_zip
from zip_page import page_blocks, required, the_pages_commands_make_a_mask


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: tiny_bundle(name, folder) for name in NAMES}


@pytest.fixture
def bundle(bundles, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(bundles["tissnet_vs"], tmp_path / "tissnet_vs")


@pytest.fixture(scope="module")
def packed(bundles, tmp_path_factory) -> Path:
    return package_bundle(bundles["tissnet_vs"], tmp_path_factory.mktemp("dist"))


@pytest.fixture
def unpacked(packed, tmp_path) -> Path:
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "tissnet_vs"


def repack(packed: Path, to: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The same zip after a change of its contents."""
    with zipfile.ZipFile(packed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    return write_zip(to / packed.name, contents)


@pytest.mark.parametrize("name", NAMES)
def test_a_package_holds_the_bundle_its_weights_the_components_and_the_sums(bundles, tmp_path, name, monkeypatch):
    (bundles[name] / "eval").mkdir(exist_ok=True)
    (bundles[name] / "eval" / "cases.csv").write_text("case\n")
    (bundles[name] / "models" / "model_last.pt").write_text("a checkpoint")
    package(bundle=str(bundles[name]), out=str(tmp_path))
    with zipfile.ZipFile(tmp_path / f"{name}_v{version(bundles[name])}.zip") as archive:
        names = archive.namelist()
    inside = {file.removeprefix(f"{name}/") for file in names}
    assert {"LICENSE", "docs/README.md", "configs/inference.json", "models/model.pt", "SHA256SUMS"} <= inside
    assert {"tissnet_components/__main__.py", "tissnet_components/scans/nifti.py"} <= inside
    assert not [file for file in inside if file.startswith(tuple(f"tissnet_components/{room}/" for room in LEFT_OUT))]
    assert not [file for file in inside if "__pycache__" in file or "eval" in Path(file).parts or "last" in file]
    assert all(file.startswith(f"{name}/") for file in names)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_packaged_names_nothing_that_is_left_out(bundles, name):
    left_out = re.compile(rf"tissnet_components\.(?:{'|'.join(LEFT_OUT)})\b")
    packaged = bundle_files(bundles[name]).items()
    assert [
        file for file, path in packaged if path.suffix in (".py", ".json") and left_out.search(path.read_text())
    ] == []


def test_a_command_that_is_left_out_is_refused_in_a_sentence_and_not_listed(unpacked):
    def answer(*words: str) -> str:
        command = [sys.executable, "-m", "tissnet_components", *words]
        environment = {**os.environ, "PYTHONPATH": str(unpacked)}
        ended = subprocess.run(command, cwd=unpacked, env=environment, text=True, capture_output=True)
        return ended.stdout + ended.stderr

    assert answer("phantom") == "error: phantom is not part of a packaged bundle; run it in the repository\n"
    assert "tissnet segment " in answer("--help")
    assert "tissnet phantom " not in answer("--help")


def version(bundle: Path) -> str:
    return json.loads((bundle / "configs" / "metadata.json").read_text())["version"]


def test_the_same_bundle_gives_the_same_bytes_whenever_and_in_whatever_order_its_files_were_written(packed, tmp_path):
    again = bundles_in_reverse(packed, tmp_path)
    assert package_bundle(again, tmp_path / "dist").read_bytes() == packed.read_bytes()


def bundles_in_reverse(packed: Path, folder: Path) -> Path:
    with zipfile.ZipFile(packed) as archive:
        for name in reversed(archive.namelist()):
            archive.extract(name, folder)
            os.utime(folder / name, (1e9, 1e9))
    return folder / "tissnet_vs"


def test_every_bundle_here_is_packaged_by_default(bundles, tmp_path, monkeypatch, capsys):
    shutil.copytree(bundles["tissnet_vs"].parent, tmp_path / "bundles")
    monkeypatch.chdir(tmp_path)
    package(out="dist")
    assert sorted(file.name.split("_v0")[0] for file in (tmp_path / "dist").iterdir()) == sorted(NAMES)
    assert capsys.readouterr().out.count("sha256") == 2


@pytest.mark.parametrize("file", ["LICENSE", "docs/README.md", "configs/inference.json"])
def test_a_bundle_without_a_file_is_not_packaged(bundle, tmp_path, file):
    (bundle / file).unlink()
    with pytest.raises(ValueError, match=f"has no {file}: restore the file"):
        package_bundle(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_bundle_without_weights_is_not_packaged(bundle, tmp_path):
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(ValueError, match=r"has no models/model.pt: train first"):
        package_bundle(bundle, tmp_path)
    (bundle / "large_files.yml").write_text("large_files: []\n")
    with pytest.raises(ValueError, match=r"run `python -m monai.bundle download_large_files"):
        package_bundle(bundle, tmp_path)


def test_a_version_without_a_line_in_the_changelog_is_not_packaged(bundle, tmp_path):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text()) | {"version": "9.0.0"}
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"has version 9.0.0 but no changelog line for it"):
        package_bundle(bundle, tmp_path)


def test_there_must_be_a_bundle_to_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no bundles folder here"):
        package()


def test_a_whole_zip_and_its_folder_pass(packed, unpacked, capsys):
    verify(str(packed))
    (unpacked / "eval").mkdir()
    (unpacked / "eval" / "result.txt").write_text("results may be added")
    verify(str(unpacked), version=version(unpacked))
    assert capsys.readouterr().out.count("files as they were packaged") == 2


def test_sha256sum_reads_the_list(unpacked):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=unpacked, check=True)


@pytest.mark.parametrize("file", ["models/model.pt", "configs/inference.json", "tissnet_components/cascade.py"])
def test_a_changed_file_is_named(packed, unpacked, tmp_path, file):
    data = bytearray((unpacked / file).read_bytes())
    data[-1] ^= 1
    (unpacked / file).write_bytes(data)
    changed = repack(
        packed, tmp_path / "changed", lambda contents: contents.update({f"tissnet_vs/{file}": bytes(data)})
    )
    for path in (unpacked, changed):
        with pytest.raises(ValueError, match=rf"^{file} of .* is not what was packaged; download it again$"):
            verify(str(path))


def test_a_lost_file_is_named(unpacked):
    (unpacked / "tissnet_components" / "cascade.py").unlink()
    with pytest.raises(ValueError, match=r"has lost tissnet_components/cascade.py"):
        verify(str(unpacked))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("models/model.pt", r"has no weights \(models/model.pt\)"),
        ("configs/metadata.json", r"has no configs/metadata.json; take the zip of a release"),
    ],
)
def test_a_package_that_lost_a_file_and_its_sum_is_refused(packed, tmp_path, lost, message):
    def drop(contents: dict[str, bytes]) -> None:
        del contents[f"tissnet_vs/{lost}"]
        lines = contents["tissnet_vs/SHA256SUMS"].decode().splitlines(keepends=True)
        contents["tissnet_vs/SHA256SUMS"] = "".join(line for line in lines if lost not in line).encode()

    with pytest.raises(ValueError, match=message):
        verify(str(repack(packed, tmp_path, drop)))


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "tissnet_vs/../../evil.py", "C:/evil", "a\\..\\evil"])
def test_a_path_that_climbs_out_is_refused(packed, tmp_path, name):
    climbing = repack(packed, tmp_path, lambda contents: contents.update({name: b"evil"}))
    with pytest.raises(ValueError, match="leads out of its folder; do not unpack it"):
        verify(str(climbing))


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_path_that_names_nothing_is_refused(packed, tmp_path, name):
    nameless = repack(packed, tmp_path, lambda contents: contents.update({name: b""}))
    with pytest.raises(ValueError, match=r"holds the path '[./]*', which names no file; take the zip of a release"):
        verify(str(nameless))


def test_an_encrypted_zip_is_refused(tmp_path):
    file = write_zip(tmp_path / "tissnet_vs_v0.1.0.zip", {"tissnet_vs/SHA256SUMS": b""})
    content = bytearray(file.read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(header) + flags] |= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"v0.1.0.zip cannot be unpacked \(.*encrypted.*\); take the zip of a release"):
        verify(str(file))


def test_a_list_of_sums_cannot_point_outside(unpacked):
    with (unpacked / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../../secret\n")
    with pytest.raises(ValueError, match="leads out of its folder"):
        verify(str(unpacked))


def test_a_file_that_was_slipped_in_is_refused(packed, tmp_path):
    slipped = repack(packed, tmp_path, lambda contents: contents.update({"tissnet_vs/monai.py": b"evil"}))
    with pytest.raises(ValueError, match=r"holds monai.py, which SHA256SUMS does not list"):
        verify(str(slipped))


@pytest.mark.parametrize("name", ["configs/train_more.json", "tissnet_components/extra.py", "json.py"])
def test_what_a_run_in_the_folder_would_follow_must_be_listed(unpacked, name):
    (unpacked / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"holds {name}, which SHA256SUMS does not list"):
        verify(str(unpacked))


def test_a_link_in_a_zip_is_refused(packed, tmp_path):
    linked = Path(shutil.copy(packed, tmp_path))
    with zipfile.ZipFile(linked, "a") as archive:
        entry = zipfile.ZipInfo("tissnet_vs/configs/out")
        entry.create_system, entry.external_attr = 3, 0o120777 << 16
        archive.writestr(entry, "/etc")
    with pytest.raises(ValueError, match=r"holds tissnet_vs/configs/out, which is a link and may lead out"):
        verify(str(linked))


@pytest.mark.parametrize("metadata", [b"{}", b"[]", b"{", b'{"version": "../../x", "changelog": {"../../x": ""}}'])
def test_metadata_without_a_version_are_named(bundle, unpacked, tmp_path, metadata):
    for folder in (bundle, unpacked):
        (folder / "configs" / "metadata.json").write_bytes(metadata)
    sums = (unpacked / "SHA256SUMS").read_text().splitlines()
    listed = [line for line in sums if not line.endswith("metadata.json")]
    (unpacked / "SHA256SUMS").write_text("\n".join([*listed, f"{sha256(metadata)}  configs/metadata.json"]))
    for check in (lambda: package_bundle(bundle, tmp_path), lambda: verify(str(unpacked))):
        with pytest.raises(ValueError, match=r"metadata.json of .* tells no version such as 0.1.0"):
            check()


def test_a_list_without_the_metadata_is_refused(unpacked):
    sums = (unpacked / "SHA256SUMS").read_text().splitlines()
    (unpacked / "SHA256SUMS").write_text("\n".join(line for line in sums if not line.endswith("metadata.json")))
    with pytest.raises(ValueError, match=r"holds configs/metadata.json, which SHA256SUMS does not list"):
        verify(str(unpacked))


def test_another_version_is_refused(packed, unpacked, tmp_path):
    renamed = shutil.copy(packed, tmp_path / "tissnet_vs_v7.0.0.zip")
    with pytest.raises(ValueError, match=r"holds version .*, expected 7.0.0"):
        verify(str(renamed))
    with pytest.raises(ValueError, match=r"holds version .*, expected 7.0.0"):
        verify(str(unpacked), version="7.0.0")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"<html>404</html>", "is not a whole zip"), (None, "there is no bundle")],
    ids=["a web page", "nothing"],
)
def test_what_is_no_zip_is_refused(tmp_path, content, sentence):
    file = tmp_path / "tissnet_vs_v0.1.0.zip"
    if content:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        verify(str(file))


def test_a_bundle_that_was_never_packaged_is_refused(bundle):
    with pytest.raises(ValueError, match="has no readable SHA256SUMS, so it is not a packaged bundle"):
        verify(str(bundle))


@pytest.mark.parametrize("name", NAMES)
def test_the_zips_page_installs_what_the_metadata_requires(bundles, name):
    install = page_blocks()[0].split()
    assert install[:2] == ["pip", "install"]
    assert set(install[2:]) == required(bundles[name])


def test_the_pages_command_for_any_subset_runs_from_what_was_packaged(tmp_path, monkeypatch):
    """In this process, and so with its components; the slow test below runs the page's commands as they stand."""
    bundle = tiny_bundle("tissnet_vs", tmp_path)
    any_subset_weights(bundle)
    with zipfile.ZipFile(package_bundle(bundle, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "colleague")
    folder = tmp_path / "colleague" / "tissnet_vs"
    scan = write_case(tmp_path / "scans" / "anna", shape=(30, 32, 12))["image"][1]
    shutil.copy(scan, folder.parent / "anna_t1ce.nii.gz")
    _, _, _, run, entry, *options = shlex.split(page_blocks()[2])
    monkeypatch.chdir(folder)
    given = dict(zip((option.removeprefix("--") for option in options[::2]), options[1::2], strict=True))
    parser = ConfigParser()
    parser.read_config(literal_eval(given.pop("config_file")))
    parser.update(given | {"device": torch.device("cpu"), "outputs": ["seg", "summary"]})
    for name in ("initialize", entry):
        parser.get_parsed_content(name)
    assert run == "run"
    summary = json.loads((folder.parent / "results" / "anna" / "anna_summary.json").read_text())
    assert (summary["real"], summary["synthetic"]) == (["t1ce"], ["t2"])


@pytest.mark.slow
def test_the_zips_pages_two_commands_turn_a_zip_and_a_t2_into_a_mask(tmp_path):
    """As they stand, with the environment of these tests; `make package-test` gives them one of their own."""
    (tmp_path / "source").mkdir()
    folder = tmp_path / "colleague"
    package_bundle(bundle_with_weights("tissnet_vs", tmp_path / "source"), folder)
    the_pages_commands_make_a_mask(folder, Path(sys.executable).parent)
