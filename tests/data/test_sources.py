"""Where records come from: lists and globs, compressed files, the embedded sample, the hub."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
import time

import pytest
import zstandard
from reading import LINES, fields, message, write

from ift_jax.data.sources import Record, read_records
from ift_jax.errors import InputError

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


class TestCompression:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_is_read_by_extension(self, tmp_path, suffix):
        path = write(tmp_path / f"R.JSONL{suffix}", COMPRESS[suffix](LINES.encode()))
        assert fields(path) == [{"a": 1}, {"a": 2}]

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_several_frames_in_one_file(self, tmp_path, suffix):
        once = COMPRESS[suffix](LINES.encode())
        assert len(fields(write(tmp_path / f"r.jsonl{suffix}", once * 3))) == 6

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_cut_off_file_is_an_error(self, tmp_path, suffix):
        whole = COMPRESS[suffix](b"".join(b'{"a": %d}\n' % n for n in range(9999)))
        shown = message(write(tmp_path / f"r.jsonl{suffix}", whole[: len(whole) // 2]))
        assert f"r.jsonl{suffix}: the " in shown
        assert "is cut off; copy or download it again" in shown

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_file_that_is_not_compressed_is_an_error(self, tmp_path, suffix):
        assert "rename it if it is not compressed" in message(
            write(tmp_path / f"r.jsonl{suffix}", LINES * 5)
        )

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_compressed_data_without_the_extension_is_an_error(self, tmp_path, suffix):
        path = write(tmp_path / "r.jsonl", COMPRESS[suffix](LINES.encode()))
        assert f"rename it to end in {suffix}" in message(path)

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_an_empty_file_inside(self, tmp_path, suffix):
        path = write(tmp_path / f"r.jsonl{suffix}", COMPRESS[suffix](b""))
        assert "the file is empty" in message(path)

    def test_a_damaged_middle_is_an_error(self, tmp_path):
        whole = bytearray(gzip.compress(os.urandom(20_000).hex().encode()))
        whole[9000:9100] = bytes(100)
        assert "not valid gzip data" in message(write(tmp_path / "r.txt.gz", bytes(whole)))


class TestSources:
    def test_lists_and_globs_in_sorted_order(self, tmp_path):
        for name in ("b.jsonl", "a.jsonl", "z.csv"):
            write(tmp_path / name, "a\n9\n" if name == "z.csv" else json.dumps({"a": name}))
        rows = fields([str(tmp_path / "z.csv"), str(tmp_path / "*.jsonl")])
        assert [row["a"] for row in rows] == ["9", "a.jsonl", "b.jsonl"]

    def test_globs_of_any_depth(self, tmp_path):
        (tmp_path / "x" / "y").mkdir(parents=True)
        write(tmp_path / "x" / "y" / "r.jsonl", LINES)
        assert len(fields(str(tmp_path / "**" / "*.jsonl"))) == 2

    def test_a_file_whose_name_holds_brackets(self, tmp_path):
        assert len(fields(write(tmp_path / "r[1].jsonl", LINES))) == 2

    def test_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "r.jsonl", LINES)
        assert next(read_records("~/r.jsonl")).origin == "~/r.jsonl:1"

    def test_a_missing_file_is_said_by_the_call_with_the_nearest_name(self, tmp_path):
        write(tmp_path / "reviews.jsonl", LINES)
        with pytest.raises(InputError, match=r"review\.jsonl: no such file; did you mean 'reviews"):
            read_records(str(tmp_path / "review.jsonl"))
        with pytest.raises(InputError, match=r"x\.jsonl: no such file; looked from"):
            read_records(str(tmp_path / "nowhere" / "x.jsonl"))

    @pytest.mark.parametrize(
        ("source", "shown"),
        [
            ("*.nothing", "no file matches this pattern"),
            ("", "the source is empty"),
            ([], "the source is an empty list"),
            (".", "a folder; name its files, for example ./*.jsonl"),
            ("https://x.org/r.jsonl", "download it and give the path"),
            ("embedded:books", "there are embedded:reviews, embedded:names"),
        ],
    )
    def test_sources_that_are_none(self, source, shown):
        assert shown in message(source)

    def test_an_empty_file(self, tmp_path):
        assert "r.jsonl: the file is empty" in message(write(tmp_path / "r.jsonl", ""))
        assert "b.jsonl: holds no records" in message(write(tmp_path / "b.jsonl", "\n\n"))

    def test_an_unknown_extension(self, tmp_path):
        shown = message(write(tmp_path / "r.dat.gz", gzip.compress(b"x")))
        assert "the extension '.dat' does not say the format; set file_format=" in shown
        assert "a name without extension" in message(write(tmp_path / "README", "x"))

    def test_file_format_goes_before_the_extension(self, tmp_path):
        assert fields(write(tmp_path / "r.txt", "a,b\n1,2\n"), file_format="csv") == [
            {"a": "1", "b": "2"}
        ]

    def test_an_unknown_file_format(self, tmp_path):
        path = write(tmp_path / "r.jsonl", LINES)
        assert "did you mean 'jsonl'" in message(path, file_format="jsonlines")

    def test_an_unknown_encoding(self, tmp_path):
        path = write(tmp_path / "r.jsonl", LINES)
        assert "encoding='utf-9': no such encoding" in message(path, encoding="utf-9")
        assert "no such encoding" in message(path, encoding="base64")

    def test_a_file_read_twice(self, tmp_path):
        path = write(tmp_path / "r.jsonl", LINES)
        assert "read twice by this source" in message([path, str(tmp_path / "*.jsonl")])

    @pytest.mark.parametrize(
        ("options", "shown"),
        [
            ({"columns": ("a",)}, "columns= does not apply to jsonl, only to csv, tsv"),
            ({"quoted": False}, "quoted= does not apply to jsonl"),
            ({"line_pattern": "(?P<a>.)", "file_format": "jsonl"}, "line_pattern= does not apply"),
            ({"split": "train"}, "subset and split are for hub: sources"),
        ],
    )
    def test_an_option_that_would_do_nothing(self, tmp_path, options, shown):
        assert shown in message(write(tmp_path / "r.jsonl", LINES), **options)

    @pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.conll"])
    def test_columns_that_are_named_twice(self, tmp_path, name):
        path = write(tmp_path / name, "1\t2\n")
        with pytest.raises(InputError, match=r"columns=.*: names 'a' twice"):
            read_records(path, columns=("b", "a", "a"))

    def test_a_file_without_permission(self, tmp_path):
        path = write(tmp_path / "r.jsonl", LINES)
        os.chmod(path, 0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read every file")
        assert "cannot be read (Permission denied)" in message(path)

    def test_embedded_reviews(self):
        record = next(read_records("embedded:reviews"))
        assert record.origin == "embedded:reviews:1"
        assert {"review_body", "star_rating"} <= set(record.fields)


class TestHub:
    """What the hub answers is simulated; that nothing answers is real enough with a dead port."""

    @pytest.fixture
    def answers(self, monkeypatch):
        """Lets a test say what the probe meets."""
        from huggingface_hub import HfApi

        def set_answer(answer):
            def dataset_info(self, name, timeout):
                if callable(answer):
                    answer()
                if isinstance(answer, Exception):
                    raise answer

            monkeypatch.setattr(HfApi, "dataset_info", dataset_info)

        return set_answer

    def test_an_unreachable_hub_is_said_soon_and_in_one_line(self, monkeypatch):
        from huggingface_hub import HfApi

        init = HfApi.__init__
        monkeypatch.setattr(HfApi, "__init__", lambda self: init(self, "http://127.0.0.1:9"))
        start = time.monotonic()
        assert "the Hugging Face hub cannot be reached" in message("hub:owner/name")
        assert time.monotonic() - start < 15

    def test_a_hub_that_does_not_answer(self, answers, monkeypatch):
        monkeypatch.setattr("ift_jax.data.hub._PROBE_S", 0.05)
        released = threading.Event()
        answers(released.wait)
        start = time.monotonic()
        try:
            assert "cannot be reached (no answer in 0.05 s)" in message("hub:owner/name")
            assert time.monotonic() - start < 10
        finally:
            released.set()

    def test_a_data_set_that_is_not_there(self, answers):
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        # Made without __init__, which wants the HTTP library's response object.
        answers(RepositoryNotFoundError.__new__(RepositoryNotFoundError))
        assert "no such data set on the hub" in message("hub:owner/name")
        answers(GatedRepoError.__new__(GatedRepoError))
        assert "access must be asked for" in message("hub:owner/name")

    def test_a_name_that_is_none(self):
        assert "write hub:owner/name" in message("hub:a/b/c")
        assert "write hub:owner/name" in message("hub:")

    def test_subset_and_split_reach_the_hub_and_rows_come_back(self, answers, monkeypatch):
        import datasets

        answers(None)
        asked = {}

        def load_dataset(name, subset, *, split, streaming):
            asked.update(name=name, subset=subset, split=split, streaming=streaming)
            return iter([{"a": 1}])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        rows = list(read_records("hub:owner/name", subset="en", split="train"))
        assert rows == [Record({"a": 1}, "hub:owner/name:1")]
        assert asked == {"name": "owner/name", "subset": "en", "split": "train", "streaming": True}

    def test_several_splits_must_be_chosen_from(self, answers, monkeypatch):
        import datasets

        answers(None)
        splits = datasets.IterableDatasetDict({"train": iter([]), "test": iter([])})
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: splits)
        assert "name one split with split=; it has train, test" in message("hub:owner/name")

    def test_a_stream_that_breaks_off(self, answers, monkeypatch):
        import datasets

        def rows():
            yield {"a": 1}
            raise ConnectionError("gone")

        answers(None)
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
        assert "reading stopped after record 1 (gone)" in message("hub:owner/name")


def test_heavy_libraries_are_imported_only_when_needed():
    code = (
        "import sys, ift_jax.data.sources, ift_jax.data.formats\n"
        "print([m for m in ('jax', 'pyarrow', 'datasets', 'zstandard', 'numpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
