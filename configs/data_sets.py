"""One task, or a few, for each folder of a collection of real data sets.

    ift data --config=data_sets:trec --preview=2
    ift train --config=data_sets:trec --workdir=runs/trec

`names()` lists the sets. Their folders lie in IFT_JAX_DATA, or else in ../shared/data.

Where a set comes with a test file of its own, that is the test split. Everywhere `split_by` says
what makes two records the same text. Equal text goes to the same split in every task, so sets that
share text can be mixed: flan_cot holds the training questions of gsm8k.
"""

import difflib
import os

from ift_jax.config import default_config, task_config
from ift_jax.errors import InputError

_FOLDER = os.environ.get("IFT_JAX_DATA") or "../shared/data"


def _task(name, *files, **fields):
    for split in ("validation_source", "test_source"):
        if split in fields:
            fields[split] = f"{_FOLDER}/{fields[split]}"
    return task_config(name=name, source=tuple(f"{_FOLDER}/{file}" for file in files), **fields)


_SHARES = {"test": (0.0, 1.0), "validation": (1.0, 0.0), "train": (0.0, 0.0)}


def _whole(name, split, *files, **fields):
    """A task whose records are all of one split; what is not to be trained is only scored."""
    validation, test = _SHARES[split]
    weight = float(split == "train")
    shares = {"validation_fraction": validation, "test_fraction": test, "weight": weight}
    return _task(name, *files, **shares, **fields)


def _review_task(name, **fields):
    """A task of amazon_reviews, with the library's templates of its name."""
    columns = {"templates": name, "split_by": ("review_body",)}
    return _task(name, "amazon_reviews/*.jsonl.gz", **columns, **fields)


def _translation_task(language, code, templates):
    """A task of tatoeba, whose files stand side by side, line by line."""
    files = (f"tatoeba/tatoeba.{code}-eng.{one}" for one in (code, "eng"))
    columns = {"file_format": "parallel", "columns": (language, "english")}
    return _task(
        f"{language}_english", *files, templates=templates, split_by=("english",), **columns
    )


def _small_task(name, *templates):
    """A task of instruction_induction: its instruction is a template of the file's name."""
    return _task(
        f"induce_{name}",
        f"instruction_induction/induce.{name}.json*",
        records_at="examples.*",
        templates="small_tasks",
        template_names=(name, *templates),
        split_by=("input",),
    )


# The tasks of instruction_induction with names of their templates beside that of the instruction.
# cause_and_effect and common_concept, 25 and 16 examples, have other columns.
_SMALL_TASKS = {
    "active_to_passive": ("Passive to active",),
    "antonyms": (),
    "diff": (),
    "first_word_letter": (),
    "informal_to_formal": ("Formal to informal",),
    "larger_animal": (),
    "letters_list": ("Letters to word",),
    "negation": (),
    "num_to_verbal": ("Words to number",),
    "orthography_starts_with": (),
    "rhymes": (),
    "second_word_letter": (),
    "sentence_similarity": (),
    "sentiment": (),
    "singular_to_plural": ("Plural to singular",),
    "sum": (),
    "synonyms": (),
    "taxonomy_animal": (),
    "translation_en-de": ("German word to English",),
    "translation_en-es": (),
    "translation_en-fr": (),
    "word_in_context": (),
}

# The task of each set, or its tasks.
_TASKS = {
    "amazon_reviews": (
        _review_task(
            "rating",
            balance_by="star_rating",  # 56 % have five stars
            train_size=2500,
            validation_size=250,
            test_size=250,
        ),
        *map(_review_task, ("headline", "review_writing")),
    ),
    "uci_sentences": _task(
        "sentiment",
        "uci_sentences/*.txt",
        file_format="tsv",
        quoted=False,
        templates="sentiment",
        split_by=("reviews",),
    ),
    "trec": _task(
        "question_type",
        "trec/TREC.train.gz",
        line_pattern=r"(?P<coarse>[A-Z]+):(?P<fine>\w+) (?P<question>.+)",
        encoding="latin-1",
        templates="question_type",
        split_by=("question",),
        test_source="trec/TREC.test",
    ),
    "sms_spam": _task(
        "spam",
        "sms_spam/sms.tsv.gz",
        columns=("label", "text"),
        quoted=False,
        templates="spam",
        split_by=("text",),
    ),
    "banking77": _task(
        "intent",
        "banking77/train.csv.gz",
        test_source="banking77/test.csv",  # 29 of its texts stand in the training file too
        templates="intent",
        split_by=("text",),
        test_size=500,
    ),
    "ag_news": _task(
        "topic",
        "ag_news/train.json.gz",
        test_source="ag_news/test.json.gz",
        templates="topic",
        split_by=("sentence",),
        test_size=500,
    ),
    "rte": _task(
        "nli",
        "rte/train.json.gz",
        test_source="rte/dev.json",
        templates="nli",
        split_by=("sentence",),
    ),
    "boolq": _task(
        "yes_no_questions",
        "boolq/train.json.gz",
        test_source="boolq/dev.json.gz",
        templates="yes_no_questions",
        split_by=("sentence",),
        test_size=500,
    ),
    "xquad": _task(
        "question_answering",
        "xquad/*.json.gz",
        records_at="data.*.paragraphs.*.qas",
        templates="question_answering",
        split_by=("title",),  # the four languages are translations of the same articles
    ),
    "gsm8k": _task(
        "word_problems",
        "gsm8k/train.jsonl.gz",
        test_source="gsm8k/test.jsonl.gz",
        templates="word_problems",
        split_by=("question",),
        test_size=500,
    ),
    "flan_cot": _task(
        "reasoning",
        "flan_cot/*.tsv.gz",
        columns=("question", "answer", "rationale"),
        quoted=False,
        templates="reasoning",
        split_by=("question",),
    ),
    "wnut17": _task(
        "ner",
        "wnut17/wnut17train.conll.gz",
        validation_source="wnut17/emerging.dev.conll*",
        test_source="wnut17/emerging.test.annotated*",
        file_format="conll",
        templates="ner",
        split_by=("tokens",),
    ),
    "restaurant8k": _task(
        "slots",
        "restaurant8k/train_0.json.gz",
        test_source="restaurant8k/test.json.gz",
        templates="slots",
        split_by=("userInput",),
        test_size=500,
    ),
    "dialogsum": _task(
        "dialogue_summary",
        "dialogsum/dialogsum.train.jsonl.gz",
        test_source="dialogsum/dialogsum.dev.jsonl.gz",  # shares 52 dialogues with it
        templates="dialogue_summary",
        split_by=("dialogue",),
    ),
    "tatoeba": (
        _translation_task("german", "deu", "translation"),
        _translation_task("french", "fra", "translation_french"),
    ),
    # Every template of a family has much the same 200 texts, and no column says which, so whole
    # families are held out, as T0 does.
    "t0_p3_templates": tuple(
        _whole(f"t0_{split}", split, *files, template_column="template")
        for split, *files in (
            ("train", "t0_p3_templates/[!gp]*", "t0_p3_templates/gigaword*"),
            ("validation", "t0_p3_templates/paws*"),
            ("test", "t0_p3_templates/glue*"),
        )
    ),
    "superni_tasks": _task("superni", "superni_tasks/*.json.gz"),
    "instruction_induction": tuple(_small_task(name, *more) for name, more in _SMALL_TASKS.items()),
    # Its files ask to be kept out of training.
    "bbh": _whole(
        "bbh",
        "test",
        "bbh/*.json",
        records_at="examples",
        templates="exact_answer",
        template_names=("Answer in the form asked for",),
    ),
    "self_instruct_seed": _task(
        "self_instruct",
        "self_instruct_seed/seed_tasks.jsonl",
        records_at="instances",
        split_by=("instruction",),
    ),
    "dolly_short": _task("dolly", "dolly_short/dolly_short_6400.jsonl.gz"),
    "raschka_instructions": _task("raschka", "raschka_instructions/instruction-data.json"),
    "alpaca_en_demo": _task("alpaca", "alpaca_en_demo/alpaca_en_demo.json.gz"),
    # The other file of the folder has questions without answers.
    "chat_multiturn": _task("tool_chat", "chat_multiturn/glaive_toolcall_en_demo.json.gz"),
}


def names():
    """The sets that `--config=data_sets:NAME` knows."""
    return list(_TASKS)


def tasks(name):
    """The tasks of a set."""
    found = _TASKS[name]
    return found if isinstance(found, tuple) else (found,)


def get_config(name=""):
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        wrong = f"no data set {name!r}" if name else "no data set is named"
        raise InputError(f"--config=data_sets:NAME: {wrong}; {hint}there are {', '.join(_TASKS)}")
    config = default_config()
    config.data.tasks = tasks(name)
    # Long enough for nearly all; a passage of xquad that is cut may lose the answer.
    config.data.max_length = 2048 if name in ("xquad", "chat_multiturn") else 1024
    config.data.on_too_long = "truncate"
    return config
