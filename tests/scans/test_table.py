"""Tables of cases, as people save them."""

import pytest
from tissnet_components.errors import UserError
from tissnet_components.scans.table import read_table

TEXT = "Case,T2\nM\u00fcller,a b.nii\n\nanna, ~/c.nii\n"
ROWS = [{"case": "M\u00fcller", "t2": "a b.nii", "line": "2"}, {"case": "anna", "t2": "~/c.nii", "line": "4"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_however_a_spreadsheet_saved_it(tmp_path, encoding, separator):
    (tmp_path / "cases.csv").write_bytes(TEXT.replace(",", separator).encode(encoding))
    assert read_table(tmp_path / "cases.csv", ["case", "t2"]) == ROWS


def test_a_short_row_has_empty_cells(tmp_path):
    (tmp_path / "cases.csv").write_text("case,t1,t2\nanna,a.nii\n")
    assert read_table(tmp_path / "cases.csv", ["case"]) == [{"case": "anna", "t1": "a.nii", "t2": "", "line": "2"}]


@pytest.mark.parametrize("content", [b"", b"name;t2\na;b\n"])
def test_a_table_without_the_columns_is_refused_with_what_it_has(tmp_path, content):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"cases.csv has the columns (none|name,t2), expected case,t2; correct it"):
        read_table(tmp_path / "cases.csv", ["case", "t2"])


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cases\.csv cannot be read .*expected a CSV with columns case"):
        read_table(tmp_path / "cases.csv", ["case"])
