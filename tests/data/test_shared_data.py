"""Every set of ../shared/data is read completely; the table doubles as documentation of options."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from ift_jax.data.sources import Rejected, read_records

DATA = Path(
    os.environ.get("IFT_JAX_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)

# Every set of ../shared/data with the options that read it: (source, options, rows per file).
TREC = r"(?P<coarse>[A-Z]+):(?P<fine>\w+) (?P<question>.+)"
SETS = {
    "amazon_reviews": (
        "amazon_reviews/*.jsonl.gz",
        {},
        {"microwave.jsonl.gz": 1615, "hair_dryer.jsonl.gz": 11470},
    ),
    "uci_sentences": (
        "uci_sentences/*.txt",
        {"file_format": "tsv", "quoted": False},
        {f"{name}_labelled.txt": 1000 for name in ("amazon_cells", "imdb", "yelp")},
    ),
    "trec": (
        "trec/TREC.*",
        {"line_pattern": TREC, "encoding": "latin-1"},
        {"TREC.train.gz": 5452, "TREC.test": 500},
    ),
    "sms_spam": (
        "sms_spam/sms.tsv.gz",
        {"columns": ("label", "text"), "quoted": False},
        {"sms.tsv.gz": 5574},
    ),
    "banking77": ("banking77/*.csv*", {}, {"train.csv.gz": 10003, "test.csv": 3080}),
    "ag_news": ("ag_news/t*.json.gz", {}, {"train.json.gz": 4000, "test.json.gz": 7600}),
    "rte": (
        ["rte/train.json.gz", "rte/dev.json"],
        {},
        {"train.json.gz": 2000, "dev.json": 277},
    ),
    "boolq": (
        ["boolq/train.json.gz", "boolq/dev.json.gz"],
        {},
        {"train.json.gz": 2000, "dev.json.gz": 3270},
    ),
    "xquad": (
        "xquad/*.json.gz",
        {"records_at": "data.*.paragraphs.*.qas"},
        {f"xquad.{language}.json.gz": 1190 for language in ("en", "de", "es", "zh")},
    ),
    "gsm8k": ("gsm8k/*.jsonl.gz", {}, {"train.jsonl.gz": 7473, "test.jsonl.gz": 1319}),
    "flan_cot": (
        "flan_cot/*.tsv.gz",
        {"columns": ("question", "answer", "rationale"), "quoted": False},
        33443,
    ),
    "wnut17": (
        "wnut17/*",
        {"file_format": "conll"},
        {
            "wnut17train.conll.gz": 3394,
            "emerging.dev.conll": 1009,
            "emerging.test.annotated": 1287,
        },
    ),
    "restaurant8k": ("restaurant8k/*", {}, {"train_0.json.gz": 8198, "test.json.gz": 3731}),
    "dialogsum": (
        "dialogsum/*",
        {},
        {"dialogsum.train.jsonl.gz": 12460, "dialogsum.dev.jsonl.gz": 500},
    ),
    "tatoeba de": (
        ["tatoeba/tatoeba.deu-eng.deu", "tatoeba/tatoeba.deu-eng.eng"],
        {"file_format": "parallel", "columns": ("german", "english")},
        1000,
    ),
    "tatoeba fr": (
        ["tatoeba/tatoeba.fra-eng.fra", "tatoeba/tatoeba.fra-eng.eng"],
        {"file_format": "parallel", "columns": ("french", "english")},
        1000,
    ),
    "t0_p3_templates": ("t0_p3_templates/*", {}, 33023),
    "superni_tasks": ("superni_tasks/*", {}, 3),
    "instruction_induction": ("instruction_induction/*", {"records_at": "examples.*"}, 69818),
    "bbh": ("bbh/*.json", {"records_at": "examples"}, 6511),
    "self_instruct_seed": (
        "self_instruct_seed/*",
        {"records_at": "instances"},
        {"seed_tasks.jsonl": 175, "user_oriented_instructions.jsonl": 252},
    ),
    "dolly_short": ("dolly_short/*", {}, 6400),
    "raschka_instructions": ("raschka_instructions/*", {}, 1100),
    "alpaca_en_demo": ("alpaca_en_demo/*", {}, 999),
    "chat_multiturn": (
        "chat_multiturn/*",
        {},
        {"glaive_toolcall_en_demo.json.gz": 300, "mt_bench_question.jsonl": 80},
    ),
}


# Sets whose JSON objects leave out what they do not have.
UNEVEN = {"restaurant8k", "chat_multiturn"}


def shared_rows(name):
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set IFT_JAX_DATA")
    source, options, expected = SETS[name]
    paths = [source] if isinstance(source, str) else source
    return list(read_records([str(DATA / path) for path in paths], **options)), expected


@pytest.mark.parametrize("name", SETS)
def test_shared_data_is_read_completely(name):
    rows, expected = shared_rows(name)
    assert [row for row in rows if isinstance(row, Rejected)] == []
    if isinstance(expected, dict):
        files = Counter(Path(row.origin.rpartition(":")[0]).name for row in rows)
        assert files == expected
    else:
        assert len(rows) == expected


@pytest.mark.parametrize("name", sorted(SETS.keys() - UNEVEN))
def test_rows_of_a_shared_file_have_the_same_columns(name):
    """A slipped cell or a swallowed line would show here."""
    rows, _ = shared_rows(name)
    shapes: dict[str, set[frozenset[str]]] = {}
    for row in rows:
        file = row.origin.rpartition(":")[0]
        shapes.setdefault(file, set()).add(frozenset(row.fields))
    assert {file: len(found) for file, found in shapes.items() if len(found) > 1} == {}


def test_cells_of_shared_tables_hold_what_their_columns_say():
    assert {row.fields["sentiment"] for row in shared_rows("uci_sentences")[0]} == {"0", "1"}
    assert {row.fields["label"] for row in shared_rows("sms_spam")[0]} == {"ham", "spam"}
    assert len({row.fields["category"] for row in shared_rows("banking77")[0]}) == 77
    assert len({row.fields["coarse"] for row in shared_rows("trec")[0]}) == 6
    tags = {tag for row in shared_rows("wnut17")[0] for tag in row.fields["tags"]}
    assert len(tags) == 13  # B- and I- of six types, and O
    for row in islice(shared_rows("xquad")[0], 50):
        [answer] = row.fields["answers"]
        start = answer["answer_start"]
        assert row.fields["context"][start:].startswith(answer["text"])
