import os

import pytest
from tissnet_components.files import copy_atomic, files_below, write_atomic


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"report.html cannot be written \(Is a directory\)"):
        write_atomic(tmp_path / "report.html", b"page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_files_are_found_once_at_any_depth_through_links_too_and_hidden_ones_not(tmp_path):
    root = tmp_path / "root"
    for name in ("root/b/2", "root/b/1", "root/a", "root/.hidden/3", "root/b/.4", "elsewhere/5"):
        write_atomic(tmp_path / name, b"")
    (root / "b" / "loop").symlink_to(root)
    (root / "c").symlink_to(tmp_path / "elsewhere")
    assert [str(file.relative_to(root)) for file in files_below(root)] == ["a", "b/1", "b/2", "c/5"]


def test_a_pipe_is_no_file_and_a_dangling_link_is_one_to_complain_of(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert [file.name for file in files_below(tmp_path)] == ["gone"]


def test_a_file_is_copied_whole_and_not_onto_itself(tmp_path):
    write_atomic(tmp_path / "one", b"content")
    copy_atomic(tmp_path / "one", tmp_path / "two")
    before = (tmp_path / "one").stat().st_ino
    copy_atomic(tmp_path / "one", tmp_path / "one")
    assert (tmp_path / "one").stat().st_ino == before
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == b"content"


def test_a_folder_that_is_none_or_cannot_be_listed_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere is not a folder; give the folder"):
        list(files_below(tmp_path / "nowhere"))
    locked, scandir = tmp_path / "locked", os.scandir
    locked.mkdir()

    def refuse(folder):
        if os.fspath(folder) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"locked cannot be listed \(Permission denied\); make it readable"):
        list(files_below(tmp_path))
