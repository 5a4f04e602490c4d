"""What each file format yields, and how each bad row is rejected."""

import csv
import gzip
import io
import json
import tracemalloc

import hypothesis.strategies as st
import pytest
from hypothesis import given
from reading import LINES, fields, message, only_rejected, write

from ift_jax.data.delimited import read_delimited
from ift_jax.data.sources import Record, read_records


class TestJsonLines:
    def test_origins_are_the_path_as_given_and_the_line(self, tmp_path, monkeypatch):
        write(tmp_path / "r.jsonl", '{"a": 1}\n\n{"a": 2}')
        monkeypatch.chdir(tmp_path)
        assert list(read_records("r.jsonl")) == [
            Record({"a": 1}, "r.jsonl:1"),
            Record({"a": 2}, "r.jsonl:3"),
        ]

    def test_separators_other_than_newline_stay_inside_the_text(self, tmp_path):
        texts = ["a\u0085b", "a\u2028b", "a\x0cb", "a\x1cb"]
        lines = "\r\n".join(json.dumps({"t": text}, ensure_ascii=False) for text in texts)
        path = write(tmp_path / "r.ndjson", lines)
        assert [row["t"] for row in fields(path)] == texts

    def test_byte_order_mark_is_dropped(self, tmp_path):
        path = write(tmp_path / "r.jsonl", b"\xef\xbb\xbf" + LINES.encode())
        assert fields(path) == [{"a": 1}, {"a": 2}]
        assert fields(path, encoding="utf-8-sig") == [{"a": 1}, {"a": 2}]

    @pytest.mark.parametrize(
        ("line", "reason", "detail"),
        [
            (b'{"a": 1', "broken_json", "Expecting ',' delimiter at character 8"),
            (b"[1]", "not_an_object", "a list, not an object"),
            (b"null", "not_an_object", "null, not an object"),
            (b'{"a": "\xe9"}', "bad_encoding", "byte 0xe9 at position 8 is not utf-8"),
            (b'{"a": "\\ud83d"}', "lone_surrogate", "\\ud83d is half of a character"),
            (b'{"a": ' + b"9" * 5000 + b"}", "broken_json", "integer string conversion"),
            (b"[" * 100_000, "broken_json", "recursion"),
        ],
    )
    def test_a_bad_line_is_rejected_and_reading_goes_on(self, tmp_path, line, reason, detail):
        path = write(tmp_path / "r.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
        first, bad, last = read_records(path)
        assert (first.fields, last.fields) == ({"a": 1}, {"a": 2})
        assert (bad.origin, bad.reason) == (f"{path}:2", reason)
        assert detail in bad.detail
        assert "\n" not in bad.detail

    def test_the_encoding_option_is_named_where_bytes_do_not_decode(self, tmp_path):
        path = write(tmp_path / "r.jsonl", '{"a": "né"}\n'.encode("latin-1"))
        assert "encoding='latin-1'" in only_rejected(path).detail
        assert fields(path, encoding="latin-1") == [{"a": "né"}]

    def test_surrogate_pairs_are_one_character(self, tmp_path):
        assert fields(write(tmp_path / "r.jsonl", '{"a": "\\ud83d\\ude00"}')) == [{"a": "😀"}]

    def test_utf16_is_read_if_named_and_recognized_if_not(self, tmp_path):
        path = write(tmp_path / "r.jsonl", '{"a": "\u0a0a"}\n{"a": 2}'.encode("utf-16"))
        assert fields(path, encoding="utf-16") == [{"a": "\u0a0a"}, {"a": 2}]
        assert "set encoding='utf-16'" in message(path)
        cut = write(tmp_path / "cut.jsonl", '{"a": 1}'.encode("utf-16")[:-1])
        assert "is not utf-16" in message(cut, encoding="utf-16")

    def test_memory_does_not_grow_with_the_file(self, tmp_path):
        line = json.dumps({"text": "x" * 1000}) + "\n"
        path = tmp_path / "r.jsonl.gz"
        path.write_bytes(gzip.compress(line.encode() * 8000))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_records(str(path))) == 8000
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


class TestJson:
    def test_array_of_objects(self, tmp_path):
        path = write(tmp_path / "r.json", '[\n {"a": 1},\n 5,\n {"a": "x"}\n]')
        first, bad, last = read_records(path)
        assert (first.fields, last) == ({"a": 1}, Record({"a": "x"}, f"{path}:3"))
        assert (bad.reason, bad.detail) == ("not_an_object", "a number, not an object")

    @pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '\n{"a": 1}\r\n\n{"a": 2}\n\n'])
    def test_json_lines_under_the_name_json_are_recognized(self, tmp_path, text):
        assert fields(write(tmp_path / "r.json", text)) == [{"a": 1}, {"a": 2}]

    def test_a_broken_line_among_json_lines_is_rejected(self, tmp_path):
        path = write(tmp_path / "r.json", '{"a": 1}\n{"a": \n{"a": 2}')
        assert only_rejected(path).origin == f"{path}:2"

    @pytest.mark.parametrize("text", ['{"a": [{"b": 1}]}', '{\n "a": [\n{"b": 1}\n]\n}'])
    def test_an_object_is_one_record(self, tmp_path, text):
        assert fields(write(tmp_path / "r.json", text)) == [{"a": [{"b": 1}]}]

    def test_an_object_that_holds_only_lists_of_objects_is_one_record(self, tmp_path):
        value = {"messages": [{"role": "user"}], "tools": [{"name": "f"}]}
        assert fields(write(tmp_path / "r.json", json.dumps(value))) == [value]

    def test_a_table_stored_by_columns_is_read_when_declared_and_refused_otherwise(self, tmp_path):
        path = write(tmp_path / "r.json", '{"a": [1, 2], "b": ["x", "y"]}')
        assert "set file_format='json_columns'" in message(path)
        expected = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
        assert fields(path, file_format="json_columns") == expected
        pandas = write(tmp_path / "p.json", '{"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}}')
        assert fields(pandas, file_format="json_columns") == expected

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ('{"a": [1], "b": []}', "differ in length (a: 1, b: 0)"),
            ('{"a": 1}', "column 'a' is not a list"),
            ("[1]", "needs an object of columns"),
            ("{", "broken JSON"),
        ],
    )
    def test_bad_tables_stored_by_columns(self, tmp_path, text, shown):
        path = write(tmp_path / "r.json", text)
        assert shown in message(path, file_format="json_columns")

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ('[{"a": 1},\n {"a": ]', "r.json:2: broken JSON (Expecting value, column 8)"),
            ('"text"', "holds text; records are an array of objects"),
            ("[]", "holds no records"),
            ("[" * 100_000, "broken JSON (maximum recursion depth"),
        ],
    )
    def test_bad_documents(self, tmp_path, text, shown):
        assert shown in message(write(tmp_path / "r.json", text))

    def test_lone_surrogates_are_rejected_in_arrays_and_nested_records(self, tmp_path):
        path = write(tmp_path / "r.json", '[{"a": "\\udc00"}, {"a": 1}]')
        assert only_rejected(path).reason == "lone_surrogate"
        path = write(tmp_path / "n.json", '{"x": [{"a": "\\uDC00"}, {"a": 1}]}')
        assert only_rejected(path, records_at="x").origin == f"{path}:x.1"

    def test_a_document_in_another_encoding_names_the_option(self, tmp_path):
        path = write(tmp_path / "r.json", '[\n{"a": "é"}]'.encode("latin-1"))
        assert "r.json:2: byte 0xe9" in message(path)


class TestRecordsAt:
    def test_squad_questions_carry_their_context_down(self, tmp_path):
        squad = {
            "version": "1.1",
            "data": [
                {
                    "title": "T",
                    "paragraphs": [
                        {"context": "C", "qas": [{"id": 1, "answers": [{"text": "A"}]}, {"id": 2}]}
                    ],
                }
            ],
        }
        path = write(tmp_path / "s.json", json.dumps(squad))
        above = {"version": "1.1", "title": "T", "context": "C"}
        for records_at in ("data.*.paragraphs.*.qas.*", "data.*.paragraphs.*.qas"):
            assert list(read_records(path, records_at=records_at)) == [
                Record(
                    {**above, "id": 1, "answers": [{"text": "A"}]},
                    f"{path}:data.1.paragraphs.1.qas.1",
                ),
                Record({**above, "id": 2}, f"{path}:data.1.paragraphs.1.qas.2"),
            ]

    def test_values_of_an_object_are_records(self, tmp_path):
        text = '{"metadata": {"n": 2}, "examples": {"7": {"input": "x"}, "8": 3}}'
        path = write(tmp_path / "s.json", text)
        record, bad = read_records(path, records_at="examples.*")
        assert record == Record({"input": "x"}, f"{path}:examples.7")
        assert (bad.origin, bad.reason) == (f"{path}:examples.8", "not_an_object")

    def test_a_records_own_field_wins(self, tmp_path):
        path = write(tmp_path / "s.json", '{"id": 1, "x": [{"id": 2}]}')
        assert fields(path, records_at="x") == [{"id": 2}]

    def test_it_applies_to_each_line_of_json_lines(self, tmp_path):
        path = write(tmp_path / "s.jsonl", '{"i": 1, "x": [{"a": 2}]}\n{"i": 3}\n')
        record, bad = read_records(path, records_at="x")
        assert record == Record({"i": 1, "a": 2}, f"{path}:1.x.1")
        assert (bad.origin, bad.reason) == (f"{path}:2", "wrong_shape")
        assert "no member 'x', only i" in bad.detail

    def test_it_applies_to_each_element_of_an_array(self, tmp_path):
        path = write(tmp_path / "s.json", '[{"x": [{"a": 2}]}]')
        assert list(read_records(path, records_at="x")) == [Record({"a": 2}, f"{path}:1.x.1")]

    def test_a_missing_member_names_those_that_are_there(self, tmp_path):
        path = write(tmp_path / "s.json", '{"examples": [], "canary": ""}')
        assert "no member 'example'; the members are examples, canary" in message(
            path, records_at="example"
        )

    def test_a_path_that_ends_in_text_is_rejected(self, tmp_path):
        path = write(tmp_path / "s.json", '{"x": ["a"]}')
        assert only_rejected(path, records_at="x.*.y").detail.endswith("no member 'y' in text")


class TestTables:
    def test_header_quotes_line_breaks_and_crlf(self, tmp_path):
        text = 'text,label\r\n"a, ""b""\r\nc",1\r\n\r\nplain 5" screen,2\r\n'
        path = write(tmp_path / "r.csv", text)
        assert list(read_records(path)) == [
            Record({"text": 'a, "b"\r\nc', "label": "1"}, f"{path}:2"),
            Record({"text": 'plain 5" screen', "label": "2"}, f"{path}:5"),
        ]

    def test_columns_mean_that_there_is_no_header(self, tmp_path):
        path = write(tmp_path / "r.tsv", 'ham\thello\nspam\t"x\ty"\n')
        assert fields(path, columns=("label", "text")) == [
            {"label": "ham", "text": "hello"},
            {"label": "spam", "text": "x\ty"},
        ]

    def test_another_delimiter(self, tmp_path):
        path = write(tmp_path / "r.csv", "a;b\n1,5;2\n")
        assert fields(path, delimiter=";") == [{"a": "1,5", "b": "2"}]

    def test_unquoted_files_keep_their_quotes(self, tmp_path):
        path = write(tmp_path / "r.tsv", 'a\tb\n"x" y\t"\n"z"\t1\n')
        assert fields(path, quoted=False) == [{"a": '"x" y', "b": '"'}, {"a": '"z"', "b": "1"}]

    def test_column_names_stay_as_they_are(self, tmp_path):
        assert fields(write(tmp_path / "r.csv", "star-rating,a b\n1,2")) == [
            {"star-rating": "1", "a b": "2"}
        ]

    @pytest.mark.parametrize(("row", "cells"), [("1,2,3", 3), ("1", 1)])
    def test_rows_of_another_length_are_rejected(self, tmp_path, row, cells):
        path = write(tmp_path / "r.csv", f'a,b\n"x\ny",1\n{row}\n3,4\n')
        bad = only_rejected(path)
        assert (bad.origin, bad.reason) == (f"{path}:4", "wrong_columns")
        assert bad.detail == f"{cells} cells where there are 2 columns (a, b)"
        assert len(list(read_records(path))) == 3

    def test_a_quote_that_never_closes_costs_one_row(self, tmp_path):
        path = write(tmp_path / "r.csv", 'a,b\n1,"open\n2,x\n3,"y"\n')
        bad, *rest = read_records(path)
        assert (bad.origin, bad.reason) == (f"{path}:2", "broken_quotes")
        assert "quoted=False" in bad.detail
        assert [row.fields["a"] for row in rest] == ["2", "3"]

    def test_an_open_quote_at_the_end_costs_one_row(self, tmp_path):
        path = write(tmp_path / "r.csv", 'a,b\n1,"open\n2,x\n3,y\n')
        bad, *rest = read_records(path)
        assert "never closed" in bad.detail
        assert [row.fields["a"] for row in rest] == ["2", "3"]

    def test_bad_bytes_inside_a_quoted_cell_reject_the_row(self, tmp_path):
        path = write(tmp_path / "r.csv", b'a,b\n1,"x\n\xe9\ny"\n2,z\n')
        rows = list(read_records(path))
        assert (rows[0].origin, rows[0].reason) == (f"{path}:2", "bad_encoding")
        assert rows[-1].fields == {"a": "2", "b": "z"}

    def test_cells_larger_than_the_csv_module_allows(self, tmp_path):
        path = write(tmp_path / "r.csv", 'a\n"' + "x" * 200_000 + '"\n')
        assert len(fields(path)[0]["a"]) == 200_000

    def test_a_header_that_names_a_column_twice(self, tmp_path):
        assert "the header names 'a' twice" in message(write(tmp_path / "r.csv", "a,b,a\n1,2,3\n"))

    def test_a_header_that_does_not_decode(self, tmp_path):
        path = write(tmp_path / "r.csv", b"\xe9,b\n1,2\n")
        assert "r.csv:1: the header cannot be read" in message(path)

    def test_lines_may_end_with_carriage_returns_alone(self, tmp_path):
        text = 'a,b\r1,"x\ry"\r\r2,z'
        for ending in ("", "\r"):
            path = write(tmp_path / "r.csv", text + ending)
            assert list(read_records(path)) == [
                Record({"a": "1", "b": "x\ny"}, f"{path}:2"),
                Record({"a": "2", "b": "z"}, f"{path}:5"),
            ]
        assert fields(write(tmp_path / "r.jsonl", '{"a": 1}\r{"a": 2}\r')) == [{"a": 1}, {"a": 2}]
        wide = write(tmp_path / "wide.txt", "one\rtwo\r".encode("utf-16"))
        assert fields(wide, encoding="utf-16") == [{"text": "one"}, {"text": "two"}]
        # Where lines end with a line feed, a carriage return is text.
        assert fields(write(tmp_path / "r.tsv", "a\nx\ry\n")) == [{"a": "x\ry"}]

    def test_a_header_alone_holds_no_records(self, tmp_path):
        assert "holds no records" in message(write(tmp_path / "r.csv", "a,b\n"))

    @given(
        st.lists(
            st.lists(st.text(st.sampled_from('ab",\t\r\n é\u2028')), min_size=2, max_size=2),
            min_size=1,
        )
    )
    def test_what_the_csv_module_writes_is_read_back(self, rows):
        for delimiter in (",", "\t"):
            written = io.StringIO(newline="")
            csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
            lines = enumerate(written.getvalue().removesuffix("\n").split("\n"), 1)
            read = read_delimited("f", lines, delimiter, ("x", "y"), quoted=True)
            assert [[*row.fields.values()] for row in read] == rows


class TestTextLines:
    def test_lines_that_are_not_blank_become_text(self, tmp_path):
        path = write(tmp_path / "r.txt", "one\r\n\n two\u0085 \x0b\n")
        assert list(read_records(path)) == [
            Record({"text": "one"}, f"{path}:1"),
            Record({"text": " two\u0085 \x0b"}, f"{path}:3"),
        ]

    def test_named_groups_of_a_pattern_become_fields(self, tmp_path):
        path = write(tmp_path / "q.train", "HUM:ind Who ?\nbroken\n")
        record, bad = read_records(path, line_pattern=r"(?P<label>\w+):\w+ (?P<text>.+)")
        assert record.fields == {"label": "HUM", "text": "Who ?"}
        assert (bad.origin, bad.reason) == (f"{path}:2", "no_match")

    @pytest.mark.parametrize(
        ("pattern", "shown"), [("(", "unterminated subpattern"), ("a+", "names no group")]
    )
    def test_bad_patterns(self, tmp_path, pattern, shown):
        assert shown in message(write(tmp_path / "r.txt", "a"), line_pattern=pattern)

    def test_tagged_sentences(self, tmp_path):
        text = "-DOCSTART-\tO\n\nA\tO\nB c\tB-x\n \nD\tO\tO\n\nE\tO"
        path = write(tmp_path / "r.conll", text)
        first, bad, last = read_records(path)
        assert first == Record({"tokens": ["A", "B c"], "tags": ["O", "B-x"]}, f"{path}:3")
        assert (bad.origin, bad.reason) == (f"{path}:6", "wrong_columns")
        assert last == Record({"tokens": ["E"], "tags": ["O"]}, f"{path}:8")

    def test_tagged_sentences_with_named_columns_split_at_blanks(self, tmp_path):
        path = write(tmp_path / "r.conll", "A DT O\nB NN B-x\n")
        assert fields(path, columns=("tokens", "pos", "tags")) == [
            {"tokens": ["A", "B"], "pos": ["DT", "NN"], "tags": ["O", "B-x"]}
        ]

    def test_parallel_files(self, tmp_path):
        first = write(tmp_path / "t.de", b"eins\n\xff\n\n")
        second = write(tmp_path / "t.en", "one\ntwo\nthree\n")
        rows = list(read_records([first, second], file_format="parallel", columns=("de", "en")))
        assert rows[0] == Record({"de": "eins", "en": "one"}, f"{first}:1")
        assert (rows[1].origin, rows[1].reason) == (f"{first}:2", "bad_encoding")
        assert rows[2].fields == {"de": "", "en": "three"}

    def test_parallel_files_of_different_length(self, tmp_path):
        paths = [write(tmp_path / "t.de", "eins\nzwei\n"), write(tmp_path / "t.en", "one\n")]
        shown = message(paths, file_format="parallel", columns=("de", "en"))
        assert "t.en: ends after line 1" in shown
        assert "2 files and 1 columns" in message(paths, file_format="parallel", columns=("de",))


ROWS = [{"a-b": 1, "t": "x"}, {"a-b": None, "t": "y\u2028"}]


class TestColumnar:
    def table(self):
        import pyarrow as pa

        return pa.Table.from_pylist(ROWS)

    def test_parquet(self, tmp_path):
        import pyarrow.parquet as pq

        path = str(tmp_path / "r.parquet")
        pq.write_table(self.table(), path)
        assert list(read_records(path)) == [
            Record(row, f"{path}:{number}") for number, row in enumerate(ROWS, 1)
        ]

    def test_arrow_file_stream_and_feather(self, tmp_path):
        import pyarrow as pa
        import pyarrow.feather

        with pa.ipc.new_file(tmp_path / "f.arrow", self.table().schema) as writer:
            writer.write_table(self.table())
        with pa.ipc.new_stream(tmp_path / "s.arrow", self.table().schema) as writer:
            writer.write_table(self.table())
        pyarrow.feather.write_feather(self.table(), str(tmp_path / "x.feather"))
        for name in ("f.arrow", "s.arrow", "x.feather"):
            assert fields(str(tmp_path / name)) == ROWS

    @pytest.mark.parametrize("name", ["r.parquet", "r.arrow"])
    def test_broken_files(self, tmp_path, name):
        assert "not a readable" in message(write(tmp_path / name, "no such data" * 10))
        assert "the file is empty" in message(write(tmp_path / name, ""))

    @pytest.mark.parametrize("name", ["r.parquet", "f.arrow", "s.arrow"])
    def test_two_columns_of_one_name_are_an_error(self, tmp_path, name):
        """Also inside a column: a record could hold only one of them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        inside = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
        numbers = [pa.array([1]), pa.array([2])]
        for table, shown in (
            (pa.table(numbers, names=["a", "a"]), f"{name}: has two columns 'a'; rename one"),
            (pa.table([inside], names=["a"]), f"{name}: row 1 or one soon after it cannot be read"),
        ):
            path = str(tmp_path / name)
            if name == "r.parquet":
                pq.write_table(table, path)
            else:
                new = pa.ipc.new_file if name == "f.arrow" else pa.ipc.new_stream
                with new(path, table.schema) as writer:
                    writer.write_table(table)
            assert shown in message(path)

    def test_a_cut_off_parquet_file(self, tmp_path):
        import pyarrow.parquet as pq

        pq.write_table(self.table(), tmp_path / "r.parquet")
        content = (tmp_path / "r.parquet").read_bytes()
        assert "not a readable" in message(write(tmp_path / "r.parquet", content[:-20]))

    def test_compressed_from_outside(self, tmp_path):
        assert "unpack it" in message(write(tmp_path / "r.parquet.gz", gzip.compress(b"x")))
