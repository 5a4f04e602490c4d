"""From a task to rows: what is asked, what comes beside it, and scores against transformers."""

import copy
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch_reference import save_variant, torch_model

from ift_jax.data import pipeline
from ift_jax.data.config import DataConfig, TaskConfig
from ift_jax.errors import InputError
from ift_jax.evaluation import answers, batching, intervals, metrics, scoring
from ift_jax.evaluation import shots as few_shots
from ift_jax.evaluation.baselines import random_scores
from ift_jax.evaluation.metrics import METRICS
from ift_jax.evaluation.shots import ask, exemplars
from ift_jax.evaluation.tasks import (
    EvaluationConfig,
    baseline_rows,
    check_scoring,
    evaluate,
    having,
    one_a_prompt,
)
from ift_jax.pretrained import load_pretrained

TEMPLATES = """
dataset: reviews
templates:
  rate: !Template
    id: rate
    name: Rate
    jinja: "Good or bad? Review: {{ text }} Verdict: ||| {{ verdict }}"
    answer_choices: good ||| really quite bad ||| so-so
    metadata: !TemplateMetadata {}
    reference: ""
  judge: !Template
    id: judge
    name: Judge
    jinja: "{{ text }} So? ||| {{ answer_choices[0] if verdict == 'good' else answer_choices[1] }}"
    answer_choices: "yes ||| no"
    metadata: !TemplateMetadata {}
    reference: ""
  write: !Template
    id: write
    name: Write
    jinja: "Review the {{ title }} please. ||| {{ text }}"
    answer_choices: null
    metadata: !TemplateMetadata {}
    reference: ""
"""
VERDICTS = ("good", "really quite bad", "so-so", "good")
RECORDS = [
    {
        "text": f"Lamp {n} is {'very ' * (n % 4)}bright.",
        "verdict": VERDICTS[n % 4],
        "title": f"lamp {n}",
    }
    for n in range(60)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_variant(tmp_path_factory.mktemp("tasks") / "model", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder)


class Place:
    def __init__(self, path: Path, chat):
        self.path, self.chat = path, chat
        (path / "t.yaml").write_text(TEMPLATES)

    def data(self, *templates, records=RECORDS, choice="all", **fields):
        file = self.path / f"{len(list(self.path.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = {"name": "lamps", "source": str(file), "templates": str(self.path / "t.yaml"),
                    "template_names": templates, "template_choice": choice, "split_by": ("title",),
                    "validation_fraction": 0.0, "test_fraction": 0.25, **fields}  # fmt: skip
        return pipeline.build(DataConfig(tasks=(TaskConfig(**settings),)), self.chat)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    return Place(tmp_path_factory.mktemp("data"), model.chat)


@pytest.fixture(scope="module")
def rated(place):
    return place.data("Rate")


def rows_of(model, data, *metrics, shots=(0,), breakdown=False, keep=None, **settings):
    config = EvaluationConfig(metrics=metrics, **settings)
    return evaluate(model, data, config, name="base", split="test", shots=shots,
                    breakdown=breakdown, keep=keep)  # fmt: skip


def values(rows):
    return {(row["shots"], row["metric"]): row["value"] for row in rows}


# Scores against transformers


@pytest.fixture(scope="module")
def in_torch(folder, model):
    """(log-probability, whether it is the most likely) of each token of an answer."""
    reference, tokenizer = torch_model(folder), model.tokenizer

    def tokens(messages, answer):
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(prompt + answer + "<|im_end|>").input_ids])
        with torch.no_grad():
            logits = reference(ids).logits[0, start - 1 : -1].double()
        targets = ids[0, start:]
        logs = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        return logs.numpy(), (logits.argmax(-1) == targets).numpy()

    return tokens


@pytest.mark.parametrize("shots", [0, 2])
def test_rankings_by_sum_mean_and_calibrated_equal_transformers(model, rated, in_torch, shots):
    [task] = rated.tasks
    before = exemplars(task, "Rate", shots, 0)
    neutral = [{"role": "user", "content": "Good or bad? Review: Lamp N/A bright. Verdict:"}]
    right = {"accuracy": [], "accuracy_mean": [], "accuracy_calibrated": []}
    lines = []
    found = rows_of(model, rated, *right, shots=(shots,), keep=lines.append, max_items=7)
    assert len(lines) == 7
    for example, line in zip(task.splits["test"][:7], lines, strict=True):
        logs = [in_torch([*before, *example.messages], c)[0] for c in example.choices]
        sums, sizes = np.array([x.sum() for x in logs]), np.array([len(x) for x in logs])
        base = np.array([in_torch([*before, *neutral], c)[0].sum() for c in example.choices])
        np.testing.assert_allclose(line.prediction.scores, sums, atol=1e-3)
        np.testing.assert_allclose(line.prediction.neutral_scores, base, atol=1e-3)
        assert line.prediction.num_choice_tokens == tuple(sizes)
        answer = example.choices.index(example.completion)
        for metric, by in zip(right, (sums, sums / sizes, sums - base), strict=True):
            right[metric].append(int(np.argmax(by)) == answer)
    assert values(found) == {(shots, m): pytest.approx(np.mean(r)) for m, r in right.items()}


@pytest.mark.parametrize("template", ["Rate", "Write"])
def test_perplexity_and_token_accuracy_of_the_reference_equal_transformers(
    model, place, in_torch, template
):
    data = place.data(template)
    examples = data.tasks[0].splits["test"]
    tokens = [in_torch(e.messages, e.completion) for e in examples]
    nll, hits = (np.concatenate(parts) for parts in zip(*tokens, strict=True))
    found = values(rows_of(model, data, "perplexity", "token_accuracy"))
    assert found[0, "perplexity"] == pytest.approx(np.exp(-nll.mean()), rel=1e-4)
    assert found[0, "token_accuracy"] == pytest.approx(hits.mean())


# Rows


def test_a_row_says_what_its_prompts_cost(model, rated):
    [task] = rated.tasks
    for shots in (0, 3):
        [row] = rows_of(model, rated, "accuracy", shots=(shots,))
        before = exemplars(task, "Rate", shots, 0)
        lengths = [len(model.chat.prompt_ids([*before, *e.messages])) for e in task.splits["test"]]
        assert row["prompt_tokens"] == pytest.approx(np.mean(lengths))
        assert row["shots_given"] == shots
        assert row["count"] == len(lengths)


def test_parts_of_the_items_stand_behind_the_whole(model, place):
    data = place.data("Rate", "Judge")
    plain = rows_of(model, data, "accuracy", "macro_f1", "mcc")
    rows = rows_of(model, data, "accuracy", "macro_f1", "mcc", breakdown=True)
    assert rows[:3] == plain
    for kind, names in (
        ("template", {"Rate", "Judge"}),
        ("class", {"good", "really quite bad", "so-so", "yes", "no"}),
    ):
        parts = [row for row in rows[3:] if kind in row and row["metric"] == "accuracy"]
        assert {row[kind] for row in parts} == names
        assert sum(row["count"] for row in parts) == rows[0]["count"]
        mean = sum(row["value"] * row["count"] for row in parts) / rows[0]["count"]
        assert mean == pytest.approx(rows[0]["value"])
    f1 = [row["value"] for row in rows[3:] if "class" in row and row["metric"] == "macro_f1"]
    assert np.mean(f1) == pytest.approx(rows[1]["value"])
    assert not [row for row in rows if "class" in row and row["metric"] == "mcc"]


def test_neither_one_template_nor_choices_of_each_item_are_broken_down(model, place):
    rows = rows_of(model, place.data("Rate"), "accuracy", breakdown=True)
    assert {row.get("class") for row in rows} == {None, *VERDICTS}
    assert not any("template" in row for row in rows)
    shared = "answer_choices: good ||| really quite bad ||| so-so"
    own = 'answer_choices: "{{ title }} ||| good ||| really quite bad ||| so-so"'
    (place.path / "own.yaml").write_text(TEMPLATES.replace(shared, own))
    data = place.data("Rate", templates=str(place.path / "own.yaml"))
    assert len({e.choices for e in data.tasks[0].splits["test"]}) > 1
    assert len(rows_of(model, data, "accuracy", breakdown=True)) == 1


def test_scores_do_not_depend_on_the_order_of_items(model, rated):
    [task] = rated.tasks
    names = ("accuracy", "accuracy_calibrated", "calibration_error", "perplexity", "exact_match")
    splits = {**task.splits, "test": task.splits["test"][::-1]}
    turned = pipeline.DataSet(rated.config, (pipeline.TaskData(task.config, splits),), rated.chat)
    first, second = (values(rows_of(model, d, *names, shots=(0, 2))) for d in (rated, turned))
    assert first == {key: pytest.approx(value, abs=1e-5) for key, value in second.items()}


def test_scores_do_not_depend_on_how_many_items_are_asked_at_once(model, rated, monkeypatch):
    names = ("accuracy", "accuracy_calibrated", "perplexity", "exact_match")

    def run():
        lines = []
        rows = rows_of(model, rated, *names, shots=(0, 2), breakdown=True, keep=lines.append)
        return rows, [line._replace(prediction=line.prediction.generated) for line in lines]

    rows, lines = run()
    monkeypatch.setattr(answers, "ITEMS_AT_ONCE", 4)
    found, found_lines = run()
    assert found_lines == lines
    for one, other in zip(found, rows, strict=True):
        numbers = {k: pytest.approx(v, 1e-5, 1e-4) for k, v in other.items() if type(v) is float}
        assert one == {**other, **numbers}


def test_host_memory_does_not_grow_with_prompts(model, place, monkeypatch):
    """An item leaves its prediction; its prompt behind exemplars, as text and tokens, goes."""
    monkeypatch.setattr(answers, "ITEMS_AT_ONCE", 8)
    monkeypatch.setattr(intervals, "_WEIGHTS", 2**12)
    data = place.data("Rate", records=[
        {**RECORDS[n % 60], "text": f"Lamp {n} is bright.", "title": f"lamp {n}"}
        for n in range(640)
    ])  # fmt: skip
    peaks, counts = [], (16, 64)
    for count in counts:

        def run(count=count):
            rows = rows_of(model, data, "accuracy", "exact_match", shots=(8,), max_items=count,
                           max_new_tokens=2, keep=str)  # fmt: skip
            assert rows[0]["count"] == count

        run()  # whatever is made once
        tracemalloc.start()
        try:
            run()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # An item with its prediction takes 2 KB, and 46 where its tokens behind exemplars stay.
    assert peaks[1] - peaks[0] < 5000 * (counts[1] - counts[0])


def test_exemplars_and_prompts_are_computed_once_for_all_items_and_choices(
    model, rated, monkeypatch
):
    """Positions that go through the model are a fifth of those of all full texts, or fewer."""
    positions, prefix, nll = [], batching._prefix_cache, scoring._target_nll

    def watched_prefix(structure, params, tokens):
        positions.append(tokens.size)
        return prefix(structure, params, tokens)

    def watched_nll(*args):
        positions.append(args[4].size)
        return nll(*args)

    monkeypatch.setattr(batching, "_prefix_cache", watched_prefix)
    monkeypatch.setattr(scoring, "_target_nll", watched_nll)
    lines = []
    rows_of(model, rated, "accuracy", shots=(5,), keep=lines.append)
    full = sum(
        len(model.tokenizer(line.prompt, add_special_tokens=False).input_ids) + len(choice) + 1
        for line in lines
        for choice in line.prediction.choices
    )
    assert len(lines) == len(rated.tasks[0].splits["test"]) > 10
    assert full > 5 * sum(positions)


# Exemplars


def test_the_same_file_under_another_path_gives_the_same_exemplars(model, tmp_path_factory):
    found = set()
    for name in ("a", "b"):
        place = Place(tmp_path_factory.mktemp(name), model.chat)
        [task] = place.data("Rate").tasks
        found.add(str(exemplars(task, "Rate", 5, 0)))
    assert len(found) == 1


def test_exemplars_are_balanced_whatever_their_number(place):
    """Half of the records are good; the seed decides whose answers come once more."""
    [task] = place.data("Rate").tasks
    more = {}
    for seed in range(8):
        for count in range(1, 8):
            given = [m["content"] for m in exemplars(task, "Rate", count, seed)[1::2]]
            counts = [given.count(verdict) for verdict in sorted({*VERDICTS})]
            assert sum(counts) == count
            assert max(counts) - min(counts) <= 1, (seed, count)
            if count in (1, 4):
                more.setdefault(count, set()).add(counts.index(max(counts)))
    assert all(len(found) > 1 for found in more.values())


def test_the_seed_decides_the_order_of_exemplars_too(model, place):
    """Also where all of a template's examples are exemplars, whichever seed draws them."""
    [task] = place.data("Rate", records=RECORDS[:8], test_fraction=0.0, test_size=0).tasks
    count = len(task.splits["train"])
    found = [exemplars(task, "Rate", count, seed) for seed in range(6)]
    asked = [[m["content"] for m in one[::2]] for one in found]
    assert all(sorted(one) == sorted(asked[0]) for one in asked)
    assert len({tuple(one) for one in asked}) > 3
    assert len({one[0] for one in asked}) > 2
    assert exemplars(task, "Rate", count, 0) == found[0]


def test_finding_how_many_exemplars_fit_takes_few_tries(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("short") / "model"
    model = load_pretrained(save_variant(path, max_position_embeddings=700))
    data = Place(tmp_path_factory.mktemp("data"), model.chat).data("Rate")
    [task] = data.tasks
    items, tried = task.splits["test"], []
    inner = few_shots._ask

    def watched(model, task, items, count, *rest):
        tried.append(count)
        return inner(model, task, items, count, *rest)

    monkeypatch.setattr(few_shots, "_ask", watched)
    asked = ask(model, task, items, 40, 0, scored=True, new_tokens=0)
    assert 3 < min(a.shots for a in asked) <= max(a.shots for a in asked) < 20
    # All at once, then halves, of which items that differ take different ones.
    assert len(tried) == len(set(tried)) < 15
    for item, one in zip(items, asked, strict=True):
        [again] = inner(model, task, [item], one.shots, 0, True)
        assert again.messages == one.messages
        [more] = inner(model, task, [item], one.shots + 1, 0, True)
        assert few_shots._length(again, 0) <= 700 < few_shots._length(more, 0)


def test_a_class_that_runs_out_leaves_its_turns_to_the_others(place):
    records = [{**r, "verdict": "good"} for r in RECORDS[:50]] + [
        {**r, "verdict": "so-so"} for r in RECORDS[50:52]
    ]
    [task] = place.data("Rate", records=records, test_fraction=0.0, test_size=0).tasks
    given = [m["content"] for m in exemplars(task, "Rate", 10, 0)[1::2]]
    assert (given.count("so-so"), given.count("good")) == (2, 8)


def test_an_item_of_the_training_split_is_not_among_its_own_exemplars(model, place):
    data = place.data("Rate", records=RECORDS[:12], test_fraction=0.0)
    [task] = data.tasks
    items = task.splits["train"]
    asked = ask(model, task, items, len(items) - 1, 0, scored=True, new_tokens=0)
    for item, one in zip(items, asked, strict=True):
        *before, question = [m["content"] for m in one.messages if m["role"] == "user"]
        assert question == item.messages[-1]["content"]
        assert question not in before
        assert len(before) == len(items) - 1


def test_several_seeds_of_exemplars_are_averaged(model, rated):
    [task] = rated.tasks
    assert len({str(exemplars(task, "Rate", 2, seed)) for seed in (0, 1, 2)}) == 3
    names = ("accuracy", "perplexity")
    each = [
        values(rows_of(model, rated, *names, shots=(2,), exemplar_seeds=(s,))) for s in (0, 1, 2)
    ]
    lines = []
    rows = rows_of(model, rated, *names, shots=(0, 2), exemplar_seeds=(0, 1, 2), keep=lines.append)
    for metric in names:
        assert values(rows)[2, metric] == pytest.approx(np.mean([e[2, metric] for e in each]))
    assert len({e[2, "perplexity"] for e in each}) == 3
    count = len(task.splits["test"])
    assert all(row["count"] == count for row in rows)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    # Without exemplars, a second seed would only repeat the first.
    assert [(line.shots, line.seed) for line in lines] == [
        (0, 0)] * count + [(2, 0)] * count + [(2, 1)] * count + [(2, 2)] * count  # fmt: skip


def test_exemplars_are_as_many_as_the_context_has_room_for(tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / "model"
    model = load_pretrained(save_variant(path, max_position_embeddings=260))
    data = Place(tmp_path_factory.mktemp("data"), model.chat).data("Rate")
    lines = []
    rows = rows_of(model, data, "accuracy", "exact_match", shots=(0, 6), keep=lines.append)
    assert rows[0]["shots_given"] == 0
    given = [line.shots_given for line in lines if line.shots == 6]
    assert rows[2]["shots_given"] == rows[3]["shots_given"] == pytest.approx(np.mean(given))
    assert 0 < min(given) <= max(given) < 6
    longest = len("really quite bad") + 2
    for line in lines:
        used = len(model.tokenizer(line.prompt, add_special_tokens=False).input_ids)
        assert used + longest <= 260
        if line.shots == 6:
            assert line.prompt.count("Verdict:") == line.shots_given + 1
            [task] = data.tasks
            [example] = [e for e in task.splits["test"] if e.exact == line.key]
            one_more = exemplars(task, "Rate", line.shots_given + 1, 0)
            more = model.chat.prompt_ids([*one_more, *example.messages])
            assert len(more) + longest > 260


@pytest.fixture(scope="module")
def chats(place):
    """Questions behind system turns that differ."""

    def turns(n):
        said = {"system": f"Bot {n}.", "user": f"Lamp {n}?", "assistant": "good"}
        return [{"role": role, "content": content} for role, content in said.items()]

    records = [{"messages": turns(n)} for n in range(24)]
    return place.data(records=records, templates="", template_names=(), split_by=())


def test_exemplars_come_without_system_turns_and_the_items_own_stays_first(model, chats):
    [task] = chats.tasks
    item = task.splits["test"][0]
    [asked] = ask(model, task, [item], 2, 0, scored=True, new_tokens=0)
    assert asked.messages == [
        item.messages[0],
        *exemplars(task, "messages", 2, 0),
        item.messages[1],
    ]
    assert [m["role"] for m in asked.messages] == ["system", *["user", "assistant"] * 2, "user"]


def test_prompts_without_content_stand_behind_system_turns_and_exemplars(model, chats, monkeypatch):
    [task] = chats.tasks
    seen, encode = [], answers.encode_questions
    monkeypatch.setattr(
        answers,
        "encode_questions",
        lambda chat, prompts: seen.extend(prompts) or encode(chat, prompts),
    )
    item = replace(task.splits["test"][0], choices=("good", "bad"))
    answers.answer(
        model, task, [item], [()], shots=2, seed=0, needs={"calibrated"}, max_new_tokens=0
    )
    [turns] = seen
    assert [one.completion for one in turns] == ["good", "bad"]
    assert list(turns[0].messages[:-1]) == [item.messages[0], *exemplars(task, "messages", 2, 0)]
    assert turns[0].messages[-1]["role"] == "user"


def test_an_item_among_the_exemplars_has_other_neutral_scores_than_the_others(model, rated):
    """On the training split: what stands before it differs, so it shares no neutral prompt."""
    [task] = rated.tasks
    train = list(task.splits["train"])
    shown = exemplars(task, "Rate", 2, 0)
    among = next(e for e in train if e.messages[0]["content"] == shown[0]["content"])
    others = [e for e in train if e.messages[0]["content"] not in [m["content"] for m in shown]][:3]

    def neutral(items):
        found = answers.answer(
            model, task, items, [()] * len(items), shots=2, seed=0, needs={"calibrated"},
            max_new_tokens=0,
        )  # fmt: skip
        return [prediction.neutral_scores for prediction in found.predictions]

    first, *rest = neutral([among, *others])
    np.testing.assert_allclose(neutral([*others, among]), [*rest, first], rtol=1e-5)
    np.testing.assert_allclose(neutral(others), rest, rtol=1e-5)
    assert np.abs(np.subtract(first, rest[0])).max() > 0.01


def test_what_the_chat_template_refuses_behind_exemplars_is_said_before_a_long_run(model, chats):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = (
        "{% if messages | length > 3 %}{{ raise_exception('too many turns') }}{% endif %}"
        + tokenizer.chat_template
    )
    strict = replace(model, tokenizer=tokenizer)
    config = EvaluationConfig(metrics=("exact_match",))
    check_scoring(strict, chats, config, split="test", shots=(0,))
    says = r"config.evaluation.shots: task lamps: behind 2 .*too many turns.*; ask without shots"
    with pytest.raises(InputError, match=says):
        check_scoring(strict, chats, config, split="test", shots=(0, 2))
    with pytest.raises(InputError, match=says):
        rows_of(strict, chats, "exact_match", shots=(2,))


def test_an_item_that_does_not_fit_alone_is_refused(tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / "model"
    model = load_pretrained(save_variant(path, max_position_embeddings=80))
    data = Place(tmp_path_factory.mktemp("data"), model.chat).data("Rate")
    config = EvaluationConfig(metrics=("accuracy",))
    for check in (
        lambda: rows_of(model, data, "accuracy", shots=(3,)),
        lambda: check_scoring(model, data, config, split="test", shots=(3,)),
    ):
        with pytest.raises(InputError, match=r"task lamps: .* tokens, the model's context is 80"):
            check()


def test_that_the_longest_answer_does_not_fit_behind_the_longest_prompt_is_said_early(place):
    """Of the longest text the prompt is short, and its answer says how many tokens are made."""
    records = [
        {"prompt": "Lamp? " + "a" * 100, "completion": "b" * 300},
        {"prompt": "Lamp? " + "c" * 350, "completion": "d"},
    ]
    data = place.data(
        records=records, templates="", template_names=(), split_by=(), test_fraction=1.0
    )
    [task] = data.tasks
    assert len(task.splits["test"]) == 2
    folder = save_variant(place.path / "short", max_position_embeddings=600)
    config = EvaluationConfig(metrics=("exact_match",))
    with pytest.raises(InputError, match=r"a prompt with its answer has [67]\d\d tokens"):
        check_scoring(load_pretrained(folder), data, config, split="test", shots=(0,))


def test_more_shots_than_training_examples_are_refused_before_the_run(model, rated):
    config = EvaluationConfig(metrics=("accuracy",))
    with pytest.raises(InputError, match="task lamps: 99 shots asked for"):
        check_scoring(model, rated, config, split="test", shots=(0, 99))


# Plain text


@pytest.fixture(scope="module")
def texts(place):
    records = [{"text": f"Lamp {n} shines {'very ' * (n % 4)}bright."} for n in range(24)]
    return place.data(records=records, templates="", template_names=(), split_by=())


def test_plain_text_is_scored_as_it_is_trained(model, folder, texts):
    """Each text by itself, without a chat format; the first token has nothing before it."""
    [task] = texts.tasks
    items, _ = one_a_prompt(task.splits["test"], 0)
    reference, sums = torch_model(folder), [0.0, 0, 0]
    for item in items:
        ids = torch.tensor([model.tokenizer(item.completion + "<|im_end|>").input_ids])
        with torch.no_grad():
            logits = reference(ids).logits[0, :-1].double()
        logs = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])
        sums[0] -= float(logs.sum())
        sums[1] += int((logits.argmax(-1) == ids[0, 1:]).sum())
        sums[2] += ids.shape[1] - 1
    kept = []
    rows = rows_of(model, texts, shots=(0, 2), keep=kept.append)  # by its default metrics
    assert {row["count"] for row in rows} == {len(items)} == {len(task.splits["test"])}
    assert values(rows) == {
        (0, "token_accuracy"): pytest.approx(sums[1] / sums[2]),
        (0, "perplexity"): pytest.approx(np.exp(sums[0] / sums[2]), rel=1e-4),
    }
    assert {line.prompt for line in kept} == {""}
    assert baseline_rows(texts, EvaluationConfig(), split="test") == []


def test_plain_text_needs_no_chat_format_that_an_assistant_may_begin(model, texts):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
        + tokenizer.chat_template
    )
    strict = replace(model, tokenizer=tokenizer)
    check_scoring(strict, texts, EvaluationConfig(), split="test", shots=(0,))
    assert rows_of(strict, texts) == rows_of(model, texts)


def test_plain_text_cannot_be_answered(model, texts):
    with pytest.raises(InputError, match="task lamps: is plain text, which asks nothing"):
        rows_of(model, texts, "exact_match")


# Reasoning


THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_an_answer_is_what_follows_the_reasoning(model, tmp_path, monkeypatch):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = THINKS
    thinking = replace(model, tokenizer=tokenizer)
    thought = "It is a lamp, and lamps are good."
    records = [
        {"messages": [
            {"role": "user", "content": f"Lamp {n}?"},
            {"role": "assistant", "content": "good", "reasoning_content": thought},
        ]}
        for n in range(12)
    ]  # fmt: skip
    data = Place(tmp_path, thinking.chat).data(
        records=records, templates="", template_names=(), split_by=()
    )
    written = f"<think>{thought}</think>\n\ngood"
    size = len(tokenizer(f"{written}<|im_end|>").input_ids)
    asked = []

    def generate(structure, params, chat, prompts, sampling, **_):
        asked.append(sampling.max_new_tokens)
        assert len(prompts) == 2
        return [written, f"<think>{thought}"]

    monkeypatch.setattr(answers, "generate_texts", generate)
    kept = []
    rows = rows_of(thinking, data, "exact_match", "perplexity", keep=kept.append)
    assert asked == [size + 1]
    assert [line.prediction.generated for line in kept] == ["good", f"<think>{thought}"]
    assert values(rows)[0, "exact_match"] == 0.5
    assert {line.prediction.num_tokens for line in kept} == {size}  # what training trains
    assert thinking.chat.spoken("no thought") == "no thought"
    assert model.chat.spoken(written) == written  # its template prints none


def test_choices_are_ranked_without_the_reasoning_that_only_the_right_one_has(model, tmp_path):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = THINKS
    thinking = replace(model, tokenizer=tokenizer)

    def scored(more):
        answer = [{"role": "assistant", "content": "good", **more}]
        records = [{"prompt": f"Lamp {n}?", "completion": answer, "choices": ["good", "bad"]}
                   for n in range(12)]  # fmt: skip
        path = tmp_path / f"{len(more)}"
        path.mkdir()
        data = Place(path, thinking.chat).data(
            records=records, templates="", template_names=(), split_by=()
        )
        kept = []
        rows_of(thinking, data, "accuracy_calibrated", "perplexity", keep=kept.append)
        return {line.prompt: line.prediction for line in kept}

    bare = scored({})
    assert {p.num_choice_tokens for p in bare.values()} == {(5, 4)}
    assert scored({"reasoning_content": "It is a lamp, and lamps are good."}) == bare


# References, baselines and what is refused


def test_all_outputs_of_super_natural_instructions_are_right(model, tmp_path):
    instances = [{"input": f"Lamp {n}", "output": ["bright", f"shiny {n}"]} for n in range(12)]
    task = {"Definition": ["What is it?"], "Positive Examples": [], "Instances": instances}
    (tmp_path / "task1_lamps.json").write_text(json.dumps(task))
    config = TaskConfig(name="lamps", source=str(tmp_path / "task1_lamps.json"), test_fraction=0.5,
                        validation_fraction=0.0)  # fmt: skip
    data = pipeline.build(DataConfig(tasks=(config,)), model.chat)
    kept = []
    rows_of(model, data, "exact_match", keep=kept.append)
    assert kept
    for line in kept:
        first, second = line.prediction.accepted
        assert (first, second.partition(" ")[0]) == ("bright", "shiny")


def test_a_choice_that_stands_twice_is_twice_as_likely_by_chance(rated):
    [task] = rated.tasks
    items = [replace(e, choices=("good", "good", "bad")) for e in task.splits["test"]]
    items = [replace(e, turns=e.turns._replace(completion="good")) for e in items]
    [(_, found)] = random_scores(items, ["accuracy"])
    assert found.value == pytest.approx(2 / 3)


def test_tasks_without_the_split_are_left_out_and_said(rated, texts, capsys):
    without = replace(texts.tasks[0], config=replace(texts.tasks[0].config, name="other"),
                      splits={**texts.tasks[0].splits, "test": []})  # fmt: skip
    both = replace(rated, tasks=(rated.tasks[0], without))
    assert having(both, "test").tasks == rated.tasks
    assert capsys.readouterr().err == "not scored, without a test split: other\n"
    with pytest.raises(InputError, match="no task has a test split"):
        having(replace(rated, tasks=(without,)), "test")


def test_answers_to_the_same_free_text_prompt_are_references_of_one_item(model, place):
    records = [{**r, "title": f"lamp {n // 2}"} for n, r in enumerate(RECORDS)]
    [task] = place.data("Write", records=records).tasks
    examples = task.splits["test"]
    items, references = one_a_prompt(examples, 0)
    assert len(items) == len(examples) / 2
    said = {e.messages[0]["content"]: set() for e in examples}
    for e in examples:
        said[e.messages[0]["content"]].add(e.completion)
    assert [set(r) for r in references] == [said[e.messages[0]["content"]] for e in items]
    assert all(len(r) == 2 for r in references)
    assert one_a_prompt(examples, 3) == (items[:3], references[:3])


def test_generation_has_room_for_the_longest_of_several_references(model, place):
    texts = ("{} is short.", "{} is long, it is very long.")
    records = [
        {**r, "title": f"lamp {n // 2}", "text": texts[n % 2].format(n)}
        for n, r in enumerate(RECORDS)
    ]
    [task] = place.data("Write", records=records).tasks
    items, references = one_a_prompt(task.splits["test"], 0)
    short = [(e, own) for e, own in zip(items, references, strict=True) if "short" in e.completion]
    right = [(e.messages, one) for e, own in short for one in own]
    size = max(int(encoded.trained.sum()) for encoded in model.chat.encode(right))
    asked, accepted = zip(*short, strict=True)
    assert answers.num_new_tokens(model, asked, accepted, {"generated"}, 0) == size + 1
    alone = [()] * len(asked)
    assert answers.num_new_tokens(model, asked, alone, {"generated"}, 0) < size


def test_equal_prompts_with_choices_stay_items_of_their_own(rated):
    [task] = rated.tasks
    twice = [*task.splits["test"], *task.splits["test"]]
    items, references = one_a_prompt(twice, 0)
    assert (items, set(references)) == (twice, {()})


def test_baselines_stand_beside_every_score(place):
    data = place.data("Rate")
    [task] = data.tasks
    test = task.splits["test"]
    names = ("accuracy", "accuracy_mean", "mcc", "exact_match", "token_f1", "perplexity",
             "macro_f1")  # fmt: skip
    rows = baseline_rows(data, EvaluationConfig(metrics=names), split="test")
    found = {(row["model"], row["metric"]): row for row in rows}
    assert list(found) == [
        *(("majority", m) for m in names if m != "perplexity"),
        *(("copy", m) for m in ("exact_match", "token_f1")),
        *(("random", m) for m in names if m != "perplexity"),
    ]
    good = np.mean([e.completion == "good" for e in test])
    assert found["majority", "accuracy"]["value"] == pytest.approx(good)
    assert found["majority", "exact_match"]["value"] == pytest.approx(good)
    assert found["majority", "mcc"]["value"] == 0
    random = found["random", "accuracy"]
    assert random["value"] == random["low"] == random["high"] == pytest.approx(1 / 3)
    assert found["random", "exact_match"]["value"] == random["value"]
    assert found["random", "mcc"]["value"] == pytest.approx(0, abs=0.05)
    # No two of the three choices share a word.
    assert found["random", "token_f1"]["value"] == pytest.approx(1 / 3, abs=0.05)
    labels, choices = [e.completion for e in test], sorted({*VERDICTS})
    guesses = np.random.default_rng(1).choice(choices, (500, len(test)))
    by_sklearn = np.mean([f1_score(labels, list(g), average="macro") for g in guesses])
    assert found["random", "macro_f1"]["value"] == pytest.approx(by_sklearn, abs=0.03)


def test_each_template_has_its_own_most_frequent_answer(place):
    data = place.data("Rate", "Judge")
    test = data.tasks[0].splits["test"]
    rows = baseline_rows(data, EvaluationConfig(metrics=("accuracy",)), split="test")
    judged = [e.completion for e in test if e.template == "Judge"]
    best = {"Rate": "good", "Judge": max(("yes", "no"), key=judged.count)}
    expected = np.mean([e.completion == best[e.template] for e in test])
    assert rows[0]["value"] == pytest.approx(expected)
    assert rows[1]["value"] == pytest.approx(np.mean([1 / len(e.choices) for e in test]))


def test_no_constant_choice_is_right_more_often_than_the_majority_baseline(place):
    """Whatever the training split, which may be balanced otherwise."""
    data = place.data("Rate")
    [task] = data.tasks
    shown = [e for e in task.splits["test"] if e.completion != "good"]
    splits = {**task.splits, "test": shown}
    other = pipeline.DataSet(data.config, (replace(task, splits=splits),), data.chat)
    rows = baseline_rows(other, EvaluationConfig(metrics=("accuracy",)), split="test")
    completions = [e.completion for e in shown]
    best = max(completions.count(answer) for answer in set(completions))
    assert rows[0]["value"] == pytest.approx(best / len(shown))
    assert best / len(shown) > 0.5


def test_the_copy_is_the_prompt_without_what_its_template_adds(place):
    """Our prompt is "Good or bad? Review: Lamp 7 is bright. Verdict:"; all say "Lamp"."""
    records = [{**r, "verdict": "good", "text": f"{n} good {n}"} for n, r in enumerate(RECORDS)]
    data = place.data("Rate", records=records)
    rows = baseline_rows(data, EvaluationConfig(metrics=("token_f1",)), split="test")
    copied = {row["model"]: row["value"] for row in rows}
    assert copied["copy"] == pytest.approx(2 * 1 / (3 + 1))  # "7 good 7" for "good"
    assert copied["majority"] == 1


def test_a_missing_library_is_refused_before_the_run(model, place, monkeypatch):
    data = place.data("Write", metrics=("rouge1",))
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    config = EvaluationConfig()
    for check in (
        lambda: check_scoring(model, data, config, split="test", shots=(0,)),
        lambda: evaluate(None, data, config, name="base", split="test", shots=(0,)),
        lambda: baseline_rows(data, config, split="test"),
    ):
        with pytest.raises(InputError, match=r"pip install \"ift_jax\[eval\]\""):
            check()


def test_a_metric_that_ranks_is_refused_without_choices(model, place):
    data = place.data("Write")
    for name, metric in METRICS.items():
        if metric.needs in ("ranked", "calibrated"):
            with pytest.raises(InputError, match="template 'Write' has no answer choices"):
                rows_of(model, data, name)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("exemplar_seeds", ()),
        ("exemplar_seeds", (1, 1)),
        ("shots", (5, 5)),
        ("metrics", ("accuracy", "accuracy")),
        ("interpolation", (0.5, 0.5)),
    ],
)
def test_what_would_be_scored_twice_or_never_is_refused(field, values):
    with pytest.raises(InputError, match=rf"config\.evaluation\.{field}: expected"):
        EvaluationConfig(**{field: values})
