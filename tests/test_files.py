import pytest

from tissnet_components.files import write_whole


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"report.html cannot be written \(Is a directory\)"):
        write_whole(tmp_path / "report.html", b"page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
