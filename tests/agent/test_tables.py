"""Samples in files: read without NumPy as NumPy wrote them, and refused with row and column."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedtiny.agent.arrays import read_npz
from fedtiny.agent.tables import read_rows
from fedtiny.errors import DataError

MOST = 1 << 20
FORMS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "b1", "U5", "S5"]


# --- arrays


@settings(max_examples=80, deadline=None)
@given(data=st.data(), form=st.sampled_from(FORMS))
def test_arrays_are_read_as_numpy_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, data: Any, form: str
) -> None:
    shape = data.draw(arrays_of.array_shapes(min_dims=1, max_dims=3, max_side=4))
    letters = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5)
    texts: dict[str, Any] = {"U": letters, "S": letters.map(str.encode)}
    elements = texts.get(form[0], arrays_of.from_dtype(np.dtype(form)))
    array = data.draw(arrays_of.arrays(np.dtype(form), shape, elements=elements))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez_compressed if data.draw(st.booleans()) else np.savez)(path, x=array)
    found = read_npz(path, MOST)["x"]
    assert found.shape == shape
    values = found.texts() if form[0] in "US" else list(found.values)
    expected = array.astype(str) if form[0] == "S" else array
    np.testing.assert_array_equal(np.array(values), expected.ravel())


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.asfortranarray(np.ones((2, 3))), "not stored row by row"),
        (np.ones(3, ">f4"), "has the type '>f4'"),
        (np.ones(3, complex), "has the type '<c16'"),
        (np.zeros(2, [("a", "f4")]), "has the type"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, array: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_npz(npz(tmp_path / "a.npz", x=array), MOST)


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=np.array([{}, "text"], object))
    with pytest.raises(DataError, match=r"has the type '\|O'"):
        read_npz(path, MOST)


def test_what_claims_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(4 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"holds 4,194,304 B; at most 1,048,576 B are read"):
        read_npz(path, MOST)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: bool
) -> None:
    stream = io.BytesIO()
    np.savez(stream, x=np.ones((3, 2), np.float32), y=np.arange(3))
    body = bytearray(stream.getvalue())
    at %= len(body)
    body[at] = byte
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(body[:at] if cut else body)
    with suppress(DataError):  # and nothing else
        read_npz(path, MOST)


# --- rows


def chosen(path: Path, part: str, labelled: bool = True) -> tuple[Any, list[Any]]:
    rows = read_rows(path, MOST)
    x, y = rows.taken(rows.chosen(part, labelled))
    return np.array(x), list(y)


def test_the_last_fifth_is_the_query_unless_told_otherwise(tmp_path: Path) -> None:
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    path = npz(tmp_path / "a.npz", x=x, y=np.arange(11))
    support, labels = chosen(path, "support")
    query, of_query = chosen(path, "query")
    np.testing.assert_array_equal(support, x[:9])
    np.testing.assert_array_equal(query, x[9:])
    assert (labels, of_query) == ([*range(9)], [9, 10])


def test_a_query_of_its_own_is_taken_as_it_is(tmp_path: Path) -> None:
    x, y = np.ones((4, 2, 3), np.float32), np.ones((4, 1))
    path = npz(tmp_path / "a.npz", x=x, y=y, x_query=2 * x[:1], y_query=y[:1])
    assert chosen(path, "support")[0].shape == (4, 2, 3)
    query, labels = chosen(path, "query")
    assert query.tolist() == (2 * x[:1]).tolist()
    assert labels == [1.0]


CSV = "t,label,part,h\n0.5,1,support,2\n1.5,0,query,3\n2.5,,support,4\n3.5,2,,5\n"


def test_a_csv_has_features_labels_and_parts_by_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    x, y = chosen(path, "support")
    assert (x.tolist(), y) == ([[0.5, 2.0], [3.5, 5.0]], [1, 2])
    x, y = chosen(path, "query")
    assert (x.tolist(), y) == ([[1.5, 3.0]], [0])
    assert chosen(path, "support", labelled=False)[0].shape == (3, 2)


def test_labels_that_come_late_are_joined_by_id(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("id,t,label\nr1,1,\nr2,2,\nr3,3,7\n")
    (tmp_path / "a.csv").write_text("id,t\nq1,9\n")
    rows = read_rows(tmp_path, MOST)
    assert (rows.ids, rows.labels) == (["q1", "r1", "r2", "r3"], [None, None, None, 7])
    (tmp_path / "labels.csv").write_text("id,label\nr2,4\nq1,5\nr3,1\n")
    assert read_rows(tmp_path, MOST).labels == [5, None, 4, 7]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("t,label\n1,0\nx,1\n", r"a\.csv: row 3, column 't': 'x' is no finite number"),
        ("t,label\nnan,0\n", r"row 2, column 't': 'nan' is no finite number"),
        ("t,label\n1,cat\n", r"row 2, column 'label': 'cat' is no finite number"),
        ("t,label\n1\n", r"row 2 has 1 cells, the header 2"),
        ("t,t\n1,2\n", r"two columns are called 't'; give each a name of its own"),
        ("0.5,0.5,1\n0.1,0.2,0\n", r"a\.csv: it needs a header line: .* has numbers"),
        ("t;h;label\n1;2;0\n", r"its cells are separated by ';'; write commas"),
        ("t\th\n", r"separated by '\\t'; write commas"),
        ("", r"a\.csv: it is empty; its first line names the columns"),
        (f"{'t' * 90},{'t' * 90}\n", rf"two columns are called '{'t' * 37}\.\.\.';"),
        (f"t,{'h' * 90}\n1,{'x' * 90}\n", rf"column '{'h' * 37}\.\.\.': '{'x' * 37}\.\.\.' is no"),
        ("t,part\n1,test\n", r"row 2, column part: 'test'; write 'support' or 'query'"),
        ("t\n" + "1\n" * 3000, r"more than 8,000 B of samples up to row 2002"),
        ("t\n\xff\n", r"no CSV in UTF-8"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="latin1")
    with pytest.raises(DataError, match=told):
        read_rows(tmp_path / "a.csv", 8000)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": np.ones(3)}, "has the arrays 'y'; the samples are called 'x'"),
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, "y has 2 rows, x has 3"),
        ({"x": np.array([[1, 2], [3, np.nan]])}, "x, row 1, value 1 is nan"),
        ({"x": np.ones((1, 2)), "part": np.array(["tset"])}, "row 0: part is 'tset'"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_rows(npz(tmp_path / "a.npz", **arrays), MOST)


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x=np.ones((2, 3)))
    npz(tmp_path / "b.npz", x=np.ones((2, 4)))
    with pytest.raises(DataError, match=r"b\.npz: a sample has the shape \(4,\), those before"):
        read_rows(tmp_path, MOST)
