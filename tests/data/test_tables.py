import re

import numpy as np
import pytest
import torch

from cflow.data import TableFile, read_table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n3,4.5\n", ("a", "b")),
        ("1,2\n3,4.5\n", None),
        ('"a";"b"\n1;2\n3;4.5', ("a", "b")),
        ("a\tb\r\n1\t2\r\n3\t4.5\r\n", ("a", "b")),
        (",a,b\n0,1,2\n1,3,4.5\n", ("a", "b")),
        ("\ufeffa, b\n\n1, 2\n# a remark\n 3 ,4.5\n\n", ("a", "b")),
        ("# a remark, of no use\n1,2\n3,4.5\n", None),
    ],
)
def test_text_of_every_kind_is_read(tmp_path, text, names):
    table = read_table(write(tmp_path / "a.csv", text))
    assert torch.equal(table.values, torch.tensor([[1.0, 2.0], [3.0, 4.5]], dtype=torch.float64))
    assert table.names == names
    assert TableFile(tmp_path / "a.csv").unnamed == ([0] if text.startswith(",") else [])


def test_columns_are_chosen_by_name_and_number(tmp_path):
    path = write(tmp_path / "a.csv", "a,b,c\n1,x,3\n4,y,6\n")
    table = read_table(path, columns=["c", 0])
    assert table.values.tolist() == [[3.0, 1.0], [6.0, 4.0]]
    assert table.names == ("c", "a")
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert read_table(tmp_path / "a.npy", columns=["2", 1]).values.tolist() == [[2.0, 1.0], [5.0, 4.0]]
    headed = write(tmp_path / "years.csv", "2001,2002\n1,2\n")
    assert len(read_table(headed).values) == 2
    assert read_table(headed, header=True).names == ("2001", "2002")
    assert read_table(headed, header=True, columns=["2002"]).values.tolist() == [[2.0]]
    with pytest.raises(ValueError, match="several columns have the name 'a'; use a number, 0 or 2"):
        read_table(write(tmp_path / "twice.csv", "a,b,a\n1,2,3\n"), columns=["a"])


def faults(chunk):
    return {position: str(fault) for position, fault in chunk.bad.items()}


def test_bad_rows_keep_their_places_and_are_named(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n5,x\n7,nan\n\n9,10\n11,\n1,2,3\n")
    chunks = list(TableFile(path).chunks(3))
    assert [len(chunk.values) for chunk in chunks] == [3, 3, 1]
    assert [place for chunk in chunks for place in chunk.places] == [2, 3, 4, 5, 7, 8, 9]
    assert faults(chunks[0]) == {1: "1 field instead of 2", 2: "column b holds 'x', not a number"}
    assert faults(chunks[1]) == {0: "column b holds 'nan', a missing value", 2: "column b is empty"}
    assert faults(chunks[2]) == {0: "3 fields instead of 2"}
    assert [chunk.passed for chunk in chunks] == [0, 1, 0]
    assert chunks[0].values[0].tolist() == [1.0, 2.0]
    assert chunks[1].values[1].tolist() == [9.0, 10.0]
    assert bool(chunks[0].values[1:].isnan().all())
    with pytest.raises(
        ValueError, match=r"(?s)5 of 7 rows are not only numbers.*line 3: 1 field instead.*drop_missing=True"
    ):
        read_table(path)


@pytest.mark.parametrize(
    "spoilt",
    ['9,"18', '"9,18', '9,18"', '"9"8,18', "9,1" + "8" * 200_000 + "x", '9,"' + "8" * 200_000 + '"', "9\x00,1"],
)
@pytest.mark.parametrize("size", [7, 10_000])
def test_a_spoilt_line_is_one_bad_row(tmp_path, spoilt, size):
    lines = ["a,b", *(f"{i},{2 * i}" for i in range(1000))]
    lines[10] = spoilt
    chunks = list(TableFile(write(tmp_path / "a.csv", "\n".join(lines) + "\n")).chunks(size))
    assert sum(len(chunk.values) for chunk in chunks) == 1000
    assert [chunk.places[position] for chunk in chunks for position in chunk.bad] == [11]
    values = torch.cat([chunk.values for chunk in chunks])
    assert torch.equal(values[10:, 0], torch.arange(10.0, 1000.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 of 1000 rows are not only numbers:\n  .*line 11") as error:
        read_table(tmp_path / "a.csv")
    assert len(str(error.value)) < 400


def test_rows_of_missing_values_and_remarks_are_told_from_no_rows(tmp_path):
    """Every line after the names is a row, or is counted among those that are none."""
    for text, rows, missing, passed in (
        ("a,b\n1,2\n,\n3,4\n", 3, [3], 0),
        ("a\tb\n1\t2\n\t\n3\t4\n", 3, [3], 0),
        ("a\n1\n\n3\n\n\n", 3, [3], 2),  # the empty line of a single column is a value, but for those at the end
        ('a\n1\n""\n3\n', 3, [3], 0),
        ("NA,NA\n1,2\n", 2, [1], 0),
        ("a,b\n1,2\n#N/A,4\n", 2, [3], 0),
        ("a,b\n1,2\n# a remark\n\n5,6\n#\n", 2, [], 3),
        ("# first\n1,2\n3,4\n\n", 2, [], 2),
    ):
        (chunk,) = TableFile(write(tmp_path / "a.csv", text)).chunks()
        assert (len(chunk.values), chunk.passed) == (rows, passed), text
        assert [chunk.places[position] for position, fault in chunk.bad.items() if fault.missing] == missing, text
        assert len(chunk.bad) == len(missing), text
    table = read_table(write(tmp_path / "ids.csv", "id,a\n#12,1\n#13,2\n"), label="id")
    assert table.labels == ["#12", "#13"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2020-01-31", "a date"), ("31.12.1999", "a date"), ("1/2/20 10:00", "a date"), ("10:30:05", "a date"),
        ("3 May 2021", "a date"), ("2020-01-31T10:00:00Z", "a date"), ("1,5", "a decimal comma"),
        ("1.234,5", "a decimal comma"), ("1,234", "a comma, of decimals or of thousands"),
        ("1,234,567.8", "digits in groups"), ("1 234 567", "digits in groups"), ("12%", "a number with a unit"),
        ("€ 12.50", "a number with a unit"), ("3 kg", "a number with a unit"), ("True", "a truth value"),
        ("blue", "not a number"), ("1e999", "infinity"), ("-inf", "infinity"),
        ("1_0", "a number in other signs than 0 to 9"),
        ("١٢", "a number in other signs than 0 to 9"), ("1 2.5 3", "several numbers"), ("0x10", "not a number"),
        ("\u22125.5", "a minus sign other than '-'"), ("'5.1", "a number with an apostrophe"),
        ("5.1*", "a number with a footnote"), ("<0.1", "a limit, not a number"),
        (">= 10", "a limit, not a number"), ("5e", "an incomplete number"), ("5'", "a number with an apostrophe"),
        ("NA", "no value"), ("", "no value"), ("?", "no value"), ("None", "no value"), ("-", "no value"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_named_with_the_remedy(tmp_path, text, kind):
    path = write(tmp_path / "a.csv", f'a;b\n"{text}";1\n2;2\n')
    (chunk,) = TableFile(path).chunks()
    assert [(position, fault.kind) for position, fault in chunk.bad.items()] == [(0, kind)]
    assert chunk.bad[0].column == "a"
    assert chunk.values[1].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="1 of 2 rows are not only numbers") as error:
        read_table(path)
    assert chunk.bad[0].remedy in str(error.value)
    assert "{" not in chunk.bad[0].remedy
    assert ("drop_missing" in str(error.value)) == (kind == "no value")


def test_columns_of_numbers_are_named_where_others_are_none(tmp_path):
    lines = ["day;kind;a;b", *(f"2020-01-{i:02d};blue;{i};{'NA' if i == 7 else i}" for i in range(1, 31))]
    with pytest.raises(ValueError, match="30 of 30 rows") as error:
        read_table(write(tmp_path / "a.csv", "\n".join(lines)))
    for part in (
        "\n  day: a date in 30 of 30 rows, first in line 2 ('2020-01-01', '2020-01-02', '2020-01-03', ...)",
        "\n  kind: text in 30 of 30 rows, first in line 2 ('blue'): omit the column",
        "\n  b: a missing value in line 8 ('NA'): drop such rows, or fill them",
        "\ncolumns with only numbers or missing values: columns=['a', 'b']\n",
        "drop_missing=True drops rows with missing values",
    ):
        assert part in str(error.value)


def test_a_few_bad_cells_are_not_the_fault_of_their_column(tmp_path):
    for text, remedy in (
        ("blue", "text in line 5 .'blue'.: correct or delete it$"),
        ("2020-01-31", "a date in 2 of 30 rows, first in line 5 .'2020-01-31'.: correct or delete them$"),
    ):
        lines = ["a,b", *(f"{i},{2 * i}" for i in range(30))]
        lines[4] = f"3,{text}"
        lines[9] = f"8,{text}" if "them" in remedy else "8,16"
        with pytest.raises(ValueError, match="of 30 rows") as error:
            read_table(write(tmp_path / "a.csv", "\n".join(lines)))
        assert re.search(remedy, str(error.value).split("\ncolumns with only")[0])
        assert "omit the column" not in str(error.value)


def test_all_kinds_of_faults_are_named_and_the_columns_beside_them(tmp_path):
    lines = ["a,b,c", "1,2,", "1,2,3", "x,2,3", "2020-01-31,2,3", "1,2,4", "1,inf,5", "yes,2,3", "1,2,3"]
    with pytest.raises(ValueError, match="5 of 8 rows") as error:
        read_table(write(tmp_path / "a.csv", "\n".join(lines)))
    for part in (
        "  b: infinity in line 7 ('inf'): drop such rows",
        "  a: a truth value in line 8 ('yes')",
        "columns with only numbers or missing values: columns=['c']",
    ):
        assert part in str(error.value)


def test_letters_are_categories_and_a_long_list_of_errors_ends(tmp_path):
    lines = ["id,type,flux", *(f"{i},{'GKF'[i % 3]},{'' if i == 7 else i}" for i in range(30))]
    with pytest.raises(ValueError, match="30 of 30 rows") as error:
        read_table(write(tmp_path / "a.csv", "\n".join(lines)))
    assert str(error.value).split("\n")[1:] == [
        "  type: text in 30 of 30 rows, first in line 2 ('G', 'K', 'F'): omit the column, or write a column of 0 and 1 "
        "for each category",
        "  flux: a missing value in line 9: drop such rows, or fill them",
        "columns with only numbers or missing values: columns=['id', 'flux']",
        "drop_missing=True drops rows with missing values",
    ]
    many = ["a,b,c,d,e,f,g,h (m)", *("x,x,x,x,x,x,x,1" for _ in range(3))]
    with pytest.raises(ValueError, match=r"\n  also g\ncolumns with only numbers: h \(m\); use columns=\.\.\.$"):
        read_table(write(tmp_path / "b.csv", "\n".join(many)))


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_the_remedy_of_decimal_commas_names_the_separator(tmp_path, mark):
    rows = "".join(f'"{i},5"{mark}"2,25"\n' for i in range(9))
    with pytest.raises(ValueError, match="a decimal comma") as error:
        read_table(write(tmp_path / "a.csv", f"a{mark}b\n{rows}"))
    assert f"read_csv(OLD, sep={mark!r}, decimal=',')" in str(error.value)


def test_a_header_with_a_name_too_few_is_told_from_rows_with_a_field_too_many(tmp_path):
    for text, message in (
        ('"a","b"\n"1",5,6\n"2",7,8\n', "3 fields, the header 2: the first column has no name"),
        ("a,b\n1,5,\n2,7,\n", "every row ends with a separator, the header does not; remove it from the rows"),
    ):
        with pytest.raises(ValueError, match=message):
            TableFile(write(tmp_path / "a.csv", text))
    with pytest.raises(ValueError, match="1 of 2 rows .*\n  line 2: 3 fields instead of 2"):
        read_table(write(tmp_path / "a.csv", "a,b\n1,5,6\n2,7\n"))


def test_a_line_break_inside_quotes_is_named_as_a_cause(tmp_path):
    with pytest.raises(ValueError, match="first line has .* a line break inside quotes.*; remove it"):
        TableFile(write(tmp_path / "a.csv", 'a,"b\n(kg)"\n1,2\n'))
    with pytest.raises(ValueError, match="line 2: a stray quote, or a line break inside quotes"):
        read_table(write(tmp_path / "a.csv", 'a,b\n"x\ny",2\n3,4\n'), columns=["b"])


@pytest.mark.parametrize("text", ["1", " 1.5 ", "-.5", "+2.", "1e5", "1E-05", "007", "1\xa0"])
def test_numbers_of_every_form_are_read(tmp_path, text):
    path = write(tmp_path / "a.csv", f"a,b\n{text},1\nx,2\n")
    (chunk,) = TableFile(path).chunks()
    assert float(chunk.values[0, 0]) == float(text)
    assert list(chunk.bad) == [1]


def test_the_delimiter_is_what_all_lines_have_as_many_of(tmp_path):
    for text, row in (
        ("1.5;2;3\n2;1;2\n", [1.5, 2.0, 3.0]),
        ('"a, b";c\n1;2\n', [1.0, 2.0]),
        ("a, unit;b;c\n1;2;3\n", [1.0, 2.0, 3.0]),
        ("a b\tc\n1\t2\n", [1.0, 2.0]),
        ("name; unit,b\n1,2\n3,4\n", [1.0, 2.0]),
    ):
        assert read_table(write(tmp_path / "a.csv", text)).values[0].tolist() == row, text
    ragged = TableFile(write(tmp_path / "a.csv", "1,5;2,5;3\n1;2;3\n4;5\n6;7;8\n"))
    assert faults(next(ragged.chunks()))[2] == "2 fields instead of 3"
    path = write(tmp_path / "a.csv", "1,5;2,5\n1;2,5\n")
    with pytest.raises(
        ValueError, match="(?s)2 of 2 rows.*  column 0: a decimal comma in line 1 .'1,5'.: write points"
    ):
        read_table(path)


def test_rows_with_missing_values_are_dropped_and_counted_on_demand(tmp_path):
    path = write(tmp_path / "a.csv", "id;a;b;day\nx;1;2;2020-01-01\ny;NA;2;\n\nz;3;;?\nw;5;6;1\n")
    table = read_table(path, columns=["a", "b"], label="id", drop_missing=True)
    assert table.values.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert (table.rows.tolist(), table.places.tolist(), table.labels) == ([0, 3], [2, 6], ["x", "w"])
    assert (table.dropped, table.passed, table.unit) == (2, 1, "line")
    with pytest.raises(ValueError, match=r"(?s)1 of 4 rows .* a date"):
        read_table(path, columns=["a", "day"], drop_missing=True)
    with pytest.raises(ValueError, match="all 4 rows miss a value"):
        read_table(write(tmp_path / "b.csv", "a,b\n" + "1,\n" * 4), drop_missing=True)
    np.save(tmp_path / "a.npy", np.array([[7.0, 1.0], [8.0, np.nan], [9.5, 3.0]]))
    table = read_table(tmp_path / "a.npy", label=0, drop_missing=True)
    assert (table.labels, table.places.tolist(), table.values.tolist()) == (["7", "9.5"], [0, 2], [[1.0], [3.0]])


@pytest.mark.parametrize(
    ("text", "doubtful"),
    [
        ("2001,2002,2003\n1.5,2,3\n4,5.5,6\n", True),
        ("0,1,2\n1.5,2,3\n4,5.5,6\n", True),
        ("id,2001,2002\n1,2,3\n4,5,6\n", True),
        ("1,2,3\n2,3,4\n3,4,5\n", False),
        ("2001,2003,2008\n1,2,3\n4,5,6\n", False),
        ("x,1\n2,3\ny,4\n", False),
        ("1.5,2.5\n1,2\n4,8\n", False),
    ],
)
def test_a_row_that_looks_like_names_is_asked_about(tmp_path, text, doubtful):
    path = write(tmp_path / "a.csv", text)
    if not doubtful:
        assert TableFile(path).names is None
        return
    with pytest.raises(ValueError, match=r"first line \(.*\) may be a row or a header; pass header=True if"):
        TableFile(path)
    assert TableFile(path, header=True).names == tuple(text.split("\n")[0].split(","))
    assert TableFile(path, header=False).names is None


def test_names_are_told_from_rows_without_numbers(tmp_path):
    for text, names in (
        ("2020-01;2020-02\n1;2\n3;4\n", ("2020-01", "2020-02")),
        ("t,y,n\n1,2,3\n", ("t", "y", "n")),
        ("2020-01-01;1,5\n2020-01-02;2\n", None),
        ("12%,NA\n13%,7\n", None),
    ):
        assert TableFile(write(tmp_path / "a.csv", text)).names == names, text


def test_text_of_spreadsheets_is_read(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
        (tmp_path / "a.csv").write_bytes(mark + "größe\tb\r\n1\t2\r\n".encode(encoding))
        table = read_table(tmp_path / "a.csv")
        assert (table.names, table.values.tolist()) == (("größe", "b"), [[1.0, 2.0]])
    (tmp_path / "a.csv").write_bytes("a,b\n1,2\n3,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text .* in line 3.*; save it as UTF-8"):
        read_table(tmp_path / "a.csv")


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch):
    from cflow.data import text

    monkeypatch.setattr(text, "LONGEST", 1000)
    write(tmp_path / "a.csv", "a,b\n1,2\n" + "1" * 5000 + "\n")
    with pytest.raises(ValueError, match="a.csv: line 3 has more than 1,000 characters"):
        read_table(tmp_path / "a.csv")


def test_arrays_are_mapped_and_flattened(tmp_path):
    array = np.random.default_rng(0).normal(size=(25, 2, 2)).astype(np.float32)
    array[7, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", array)
    file = TableFile(tmp_path / "a.npy")
    assert isinstance(file._array.base, np.memmap) or isinstance(file._array, np.memmap)
    chunks = list(file.chunks(10))
    assert [len(chunk.values) for chunk in chunks] == [10, 10, 5]
    assert faults(chunks[0]) == {7: "column 0 holds 'inf', infinity"}
    assert list(chunks[1].places) == list(range(10, 20))
    assert np.array_equal(chunks[2].values.numpy(), array[20:].reshape(5, 4))
    assert file.unit == "row"
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((2, 2)))
    assert read_table(tmp_path / "a.npz", key="x").values.tolist() == [[0.0], [1.0], [2.0]]


def test_a_long_text_is_read_in_memory_of_one_chunk(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.csv", "a,b\n" + "1.5,2.5\n" * 20_000)
    peaks = []
    for size in (200, 20_000):
        tracemalloc.start()
        total = sum(len(chunk.values) for chunk in TableFile(path).chunks(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == 20_000
    assert peaks[0] < peaks[1] / 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1,2\n", "ending in '.txt' are not supported"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"a,b\n", "there are no rows"),
        ("a.csv", b"\x81,\x82\n", "not UTF-8"),
        ("a.csv", b"\xff\xfe1\x00,", "not UTF-16"),
        ("a.csv", b'"a,b\n1,2\n', "first line has a stray quote"),
        ("a.npy", b"not an array", "not a readable .npy"),
        ("a.csv", b"a,b\n1,2\n", "no column 'c'; the file has the columns a, b"),
        ("b.csv", b"1,2\n", "no column 'c'; the file has 2 columns without names, 0 to 1"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, columns=["c"] if "'c'" in message else None)


def test_arrays_without_numbers_and_missing_files_are_refused(tmp_path):
    for array in (np.array(["a", "b"]), np.zeros((0, 2)), np.array(1.0), np.ones(2, complex)):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(ValueError, match="save real numbers|torch does not have"):
            read_table(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "ph.csv").mkdir()
    for folder in (tmp_path, tmp_path / "ph.csv"):
        with pytest.raises(IsADirectoryError, match="this is a folder; pass a file in it"):
            read_table(folder)
