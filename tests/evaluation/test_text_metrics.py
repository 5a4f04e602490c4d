"""Metrics of generated text, against rouge-score, sacrebleu, torchmetrics and seqeval."""

import random
from decimal import Decimal

import pytest

from ift_jax.errors import InputError
from ift_jax.evaluation import metrics
from ift_jax.evaluation.metrics import METRICS, check_packages, check_references, score
from ift_jax.evaluation.predictions import Prediction
from ift_jax.evaluation.text_metrics import last_number

TEXT = "the a cat cats sat on mat, dog's ran; Running in 1,000 U.S. towns. über straße ."
EDGES = [
    ("", ""),
    ("", "x"),
    ("x", ""),
    ("the", "a"),
    ("A cat.", "a cat"),
    ("!", "?"),
    (" ", "the"),
]


def texts(seed, count=40):
    """Random generated texts, each with one to three references, and edge cases."""
    rng = random.Random(seed)

    def sentence():
        return " ".join(rng.choices(TEXT.split(), k=rng.randint(0, 9)))

    pairs = [
        (sentence(), tuple(sentence() for _ in range(rng.randint(1, 3)))) for _ in range(count)
    ]
    return pairs + [(given, (wanted,)) for given, wanted in EDGES]


def predictions(pairs):
    return [
        Prediction(wanted[0], generated=given, references=wanted if len(wanted) > 1 else ())
        for given, wanted in pairs
    ]


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_best_reference_of_rouge_score(kind):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)
    pairs = texts(1)
    best = [max(scorer.score(w, given)[kind].fmeasure for w in wanted) for given, wanted in pairs]
    found = score(kind, [predictions(pairs)])
    assert found.value == pytest.approx(sum(best) / len(best), abs=1e-12)
    assert 0 < found.low < found.value < found.high < 1


def streams(pairs):
    """References as sacrebleu takes them: one list per position, None where there is none."""
    return [
        [wanted[i] if i < len(wanted) else None for _, wanted in pairs]
        for i in range(max(len(wanted) for _, wanted in pairs))
    ]


@pytest.mark.parametrize("kind", ["bleu", "chrf"])
@pytest.mark.parametrize("seed", [2, 3])
def test_bleu_and_chrf_are_sacrebleus_over_the_corpus(kind, seed):
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = texts(seed)
    corpus = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[kind]
    expected = corpus([given for given, _ in pairs], streams(pairs)).score / 100
    found = score(kind, [predictions(pairs)])
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.low < found.value < found.high <= 1


@pytest.mark.parametrize("kind", ["bleu", "chrf"])
def test_corpus_scores_of_empty_and_of_equal_texts(kind):
    pytest.importorskip("sacrebleu")
    assert score(kind, [predictions([("", ("a cat sat on mats",))] * 3)]) == (0, 0, 0)
    same = predictions([("a cat sat on mats", ("a cat sat on mats", "x"))] * 3)
    assert score(kind, [same]) == pytest.approx((1, 1, 1))


def test_intervals_of_corpus_scores_agree_with_sacrebleus_bootstrap():
    sacrebleu = pytest.importorskip("sacrebleu")
    pairs = texts(4, 120)
    reference = sacrebleu.BLEU().corpus_score(
        [g for g, _ in pairs], streams(pairs), n_bootstrap=1000
    )
    found = score("bleu", [predictions(pairs)])
    half = (found.high - found.low) / 2
    assert half == pytest.approx(reference._ci / 100, rel=0.15)


def test_token_f1_equals_torchmetrics_squad():
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    pairs = texts(5)
    given = [{"id": str(i), "prediction_text": g} for i, (g, _) in enumerate(pairs)]
    wanted = [
        {"id": str(i), "answers": {"text": list(w), "answer_start": [0] * len(w)}}
        for i, (_, w) in enumerate(pairs)
    ]
    expected = float(squad(given, wanted)["f1"]) / 100
    assert score("token_f1", [predictions(pairs)]).value == pytest.approx(expected, abs=1e-6)


def test_exact_match_takes_any_reference_and_ignores_space_around_it():
    pairs = [(" cat\n", ("dog", "cat")), ("Cat", ("cat",)), ("", ("",)), ("ca t", ("cat",))]
    assert score("exact_match", [predictions(pairs)]).value == 0.5


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48 / 2 = 24 clips.\n#### 24", "24"),
        ("#### 1,234,567", "1234567"),
        ("#### -3", "-3"),
        ("#### $3.50 per cup, 2 cups", "3.50"),
        ("it is 5.", "5"),
        ("it is 5, or 6,", "6"),
        ("from 3-4", "4"),
        ("x=-4", "-4"),
        ("loses -$12", "-12"),
        ("loses $-12", "-12"),
        ("\u22127 degrees", "-7"),
        ("+7", "7"),
        ("A-1", "1"),
        (".5", "0.5"),
        ("1,2345", "2345"),
        ("it is 1e5", "100000"),
        ("2.5E-3 m", "0.0025"),
        ("3em", "3"),
        ("12,50", "50"),
        ("50%", "50"),
        ("none", None),
        ("12 #### none", None),
        ("", None),
        ("-", None),
        ("a.b", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    found = last_number(text)
    assert found == (None if number is None else Decimal(number)), found


def test_numbers_match_by_value():
    pairs = [("so 18.0", ("#### 18",)), ("1,000 dollars", ("1000",)), ("18 or 19", ("18",)),
             ("no idea", ("18",)), ("19", ("18", "19"))]  # fmt: skip
    assert score("numeric_match", [predictions(pairs)]).value == 3 / 5


# Entities


def random_tags(rng, size):
    return [rng.choice(["O", "O", "B-per", "I-per", "B-loc", "I-loc"]) for _ in range(size)]


@pytest.mark.parametrize("seed", range(4))
def test_bio_f1_equals_seqeval(seed):
    f1_score = pytest.importorskip("seqeval.metrics").f1_score
    rng = random.Random(seed)
    rows = [
        (random_tags(rng, n), random_tags(rng, n)) for n in [1, 2, *rng.choices(range(3, 15), k=30)]
    ]
    given = [Prediction(" ".join(a), generated=" ".join(g)) for a, g in rows]
    expected = f1_score([a for a, _ in rows], [g for _, g in rows])
    assert score("bio_f1", [given]).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("rows", [[("O O", "O O")], [("O O", "B-x O")], [("B-x I-x", "O O")]])
def test_bio_f1_without_entities_is_seqevals_0(rows):
    f1_score = pytest.importorskip("seqeval.metrics").f1_score
    expected = f1_score([a.split() for a, _ in rows], [g.split() for _, g in rows])
    assert score("bio_f1", [[Prediction(a, generated=g) for a, g in rows]]).value == expected == 0


def test_tags_that_are_missing_too_many_or_none_count_as_outside():
    whole = Prediction("B-per I-per O", generated="B-per I-per O B-loc")
    assert score("bio_f1", [[whole]]).value == 1
    cut = Prediction("O B-per O B-loc", generated="O B-per")
    assert score("bio_f1", [[cut]]).value == pytest.approx(2 / 3)
    words = Prediction("B-per O", generated="The name")
    assert score("bio_f1", [[words]]).value == 0


@pytest.mark.parametrize("seed", range(4))
def test_tag_f1_is_sklearns_over_tags_other_than_outside(seed):
    from sklearn.metrics import f1_score

    rng = random.Random(seed)
    sizes = [1, 2, *rng.choices(range(3, 15), k=30)]
    rows = [(random_tags(rng, n), random_tags(rng, n)) for n in sizes]
    given = [Prediction(" ".join(a), generated=" ".join(g)) for a, g in rows]
    wanted, found = ([tag for row in rows for tag in row[side]] for side in (0, 1))
    labels = sorted({*wanted, *found} - {"O"})
    expected = f1_score(wanted, found, labels=labels, average="micro")
    assert score("tag_f1", [given]).value == pytest.approx(expected, abs=1e-12)


def test_a_tag_at_another_place_is_not_right():
    moved = Prediction("B-per O O O", generated="O O O B-per")
    assert score("tag_f1", [[moved]]).value == 0
    whole = Prediction("B-per O O", generated="B-per", references=("B-per O O", "O O O"))
    assert score("tag_f1", [[whole]]).value == 1


def listed(tokens, tags, separator):
    """The entities as our NER templates write them."""
    found = []
    for token, tag in zip(tokens, tags, strict=True):
        if tag.startswith("B-"):
            found.append(f"{tag[2:]}: {token}")
        elif tag.startswith("I-"):
            found[-1] += f" {token}"
    return separator.join(found) or "none"


@pytest.mark.parametrize("separator", ["\n", "; "])
def test_entity_f1_of_listed_entities_equals_seqeval_on_their_tags(separator):
    """Where every token occurs once, an entity's text says where it stands."""
    f1_score = pytest.importorskip("seqeval.metrics").f1_score
    rng = random.Random(7)
    rows, given = [], []
    for _ in range(40):
        tokens = rng.sample([f"w{i}" for i in range(50)], rng.randint(1, 12))
        pair = []
        for _ in range(2):
            tags, before = [], "O"
            for _ in tokens:
                inside = [f"I-{before[2:]}"] if before != "O" else []
                before = rng.choice(["O", "O", "B-per", "B-loc", *inside])
                tags.append(before)
            pair.append(tags)
        rows.append(pair)
        texts = [listed(tokens, tags, separator) for tags in pair]
        given.append(Prediction(texts[0], generated=texts[1]))
    expected = f1_score([a for a, _ in rows], [g for _, g in rows])
    assert score("entity_f1", [given]).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "generated", "value"),
    [
        ("person: Ada\nlocation: London", "location:  London\nperson: Ada", 1),
        ("person: Ada", "location: Ada", 0),  # the type counts
        ("Ada", "ada", 0),  # and so does case
        ("Ada; Ada", "Ada", 2 / 3),  # and how often
        ("none", "None.", 0),
        ("Ada", "Ada; Bob; Eve", 0.5),
    ],
)
def test_entity_f1_of_lists(answer, generated, value):
    found = score("entity_f1", [[Prediction(answer, generated=generated)]])
    assert found.value == pytest.approx(value)


# What is refused before a run


@pytest.mark.parametrize("metric", ["rouge1", "rouge2", "rougeL", "bleu", "chrf"])
def test_a_metric_without_its_library_says_what_to_install(metric, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    check_packages(["accuracy", "exact_match", "token_f1"])
    with pytest.raises(InputError, match=rf"metric {metric}: .*`pip install \"ift_jax\[eval\]\"`"):
        check_packages(["accuracy", metric])


def test_references_that_a_metric_cannot_read_are_refused():
    check_references(["exact_match", "numeric_match"], ["#### 3"], "task sums")
    with pytest.raises(InputError, match=r"task sums: metric numeric_match .* got 'three'"):
        check_references(["exact_match", "numeric_match"], ["#### 3", "three"], "task sums")
    with pytest.raises(InputError, match="metric bio_f1 expects every reference to be a row of"):
        check_references(["bio_f1"], ["person: Ada"], "task names")


def test_every_metric_is_a_function_of_sums():
    """What is counted in each item adds up: in any order, and in parts."""
    pairs = texts(6)
    numbers = [p._replace(answer="O B-x", references=(), ranked="O B-x", choices=("O B-x", "n"),
                          scores=(-1.0, -2.0), num_choice_tokens=(1, 2), neutral_scores=(0.0, -3.0),
                          log_likelihood=-1.5, num_tokens=3, num_correct=2)
               for p in predictions(pairs)]  # fmt: skip
    for name, metric in METRICS.items():
        if metric.package:
            pytest.importorskip(metric.package)
        forward, backward = score(name, [numbers]), score(name, [numbers[::-1]])
        assert forward.value == pytest.approx(backward.value, abs=1e-12), name
        doubled = score(name, [numbers, numbers])
        assert doubled.value == pytest.approx(forward.value, abs=1e-12), name
