"""Forgetting: hand-computed matrices, paired intervals, and which probes count."""

import numpy as np
import pytest

from ift_jax.errors import InputError
from ift_jax.evaluation.forgetting import (
    average_forgetting,
    backward_transfer,
    changes,
    forgetting,
    matrix_entry,
    matrix_means,
    mean_change,
    probes,
    score_matrix,
)
from ift_jax.evaluation.intervals import share
from ift_jax.evaluation.predictions import Line, Prediction
from ift_jax.report.inputs import CHANGE, MATRIX, check

# Three tasks tuned one after the other, on a model that was measured before.
SEQUENCE = np.array([[0.2, 0.1, 0.3], [0.9, 0.2, 0.3], [0.7, 0.8, 0.4], [0.75, 0.5, 0.9]])


def test_backward_transfer_by_hand():
    # (0.75 - 0.9 + 0.5 - 0.8) / 2
    assert backward_transfer(SEQUENCE, [1, 2, 3]) == pytest.approx(-0.225)
    # A task that the model could do before any tuning is measured from there.
    assert backward_transfer(SEQUENCE, [0, 3, 3]) == pytest.approx(0.75 - 0.2)
    # Two tasks in one stage: (0.75 - 0.7 + 0.5 - 0.8) / 2
    assert backward_transfer(SEQUENCE, [2, 2, 3]) == pytest.approx(-0.125)
    with pytest.raises(ValueError, match="before the last stage"):
        backward_transfer(SEQUENCE, [3, 3, 3])


def test_forgetting_is_from_the_best_stage_and_not_from_the_first():
    # max(0.2, 0.9, 0.7) - 0.75, max(0.1, 0.2, 0.8) - 0.5, max(0.3, 0.3, 0.4) - 0.9
    assert forgetting(SEQUENCE) == pytest.approx([0.15, 0.3, -0.5])
    # The last task has no later stage to be lost in.
    assert average_forgetting(SEQUENCE, [1, 2, 3]) == pytest.approx(0.225)
    # Where a later stage helped an earlier task the two definitions part.
    helped = np.array([[0.5], [0.8], [0.6]])
    assert forgetting(helped) == pytest.approx([0.2])
    assert backward_transfer(helped, [0]) == pytest.approx(0.1)


def test_the_definitions_hold_along_leading_axes():
    many = np.stack([SEQUENCE, 2 * SEQUENCE])
    assert backward_transfer(many, [1, 2, 3]) == pytest.approx([-0.225, -0.45])
    assert forgetting(many)[1] == pytest.approx([0.3, 0.6, -1.0])
    assert mean_change(many) == pytest.approx([(0.55 + 0.4 + 0.6) / 3, 2 * (0.55 + 0.4 + 0.6) / 3])
    assert mean_change(SEQUENCE, before=2) == pytest.approx((0.05 - 0.3 + 0.5) / 3)


def lines(task, right, *, model="base", seed=0, shots=0, metrics=("accuracy",)):
    """One prediction an item; `right` says which of them are."""
    made = []
    for number, is_right in enumerate(right):
        answer = ("good", "bad")[number % 2]
        ranked = answer if is_right else {"good": "bad", "bad": "good"}[answer]
        prediction = Prediction(
            answer, ranked=ranked, choices=("good", "bad"), scores=(-1.0, -2.0),
            num_choice_tokens=(1, 1), log_likelihood=-1.0, num_tokens=1, num_correct=1,
        )  # fmt: skip
        made.append(
            Line(model=model, task=task, split="test", shots=shots, seed=seed, shots_given=shots,
                 template="t", key=f"{number:04x}", metrics=metrics, prompt="p",
                 prediction=prediction)
        )  # fmt: skip
    return made


def draws(seed, share_right, count=60):
    return np.random.default_rng(seed).random(count) < share_right


@pytest.fixture
def stages():
    """Two tasks over three stages."""
    return [
        lines("names", draws(i, names), model=m) + lines("topic", draws(9 + i, topic, 80), model=m)
        for i, (m, names, topic) in enumerate(
            [("base", 0.5, 0.4), ("a", 0.9, 0.5), ("b", 0.6, 0.9)]
        )
    ]


def test_the_matrix_holds_the_scores_of_each_stage(stages):
    found = score_matrix(stages)
    assert found.tasks == ("names", "topic")
    expected = [[draws(i, n).mean(), draws(9 + i, t, 80).mean()]
                for i, (n, t) in enumerate([(0.5, 0.4), (0.9, 0.5), (0.6, 0.9)])]  # fmt: skip
    np.testing.assert_allclose(found.values, expected)
    assert found.resampled.shape == (1000, 3, 2)
    entry = matrix_entry("m", ["base", "a", "b"], found)
    for i, j in np.ndindex(3, 2):  # near the interval that a share has
        count = (60, 80)[j]
        wilson = share(expected[i][j] * count, count)
        assert (entry["low"][i][j], entry["high"][i][j]) == pytest.approx((wilson.low, wilson.high))
        low, high = np.quantile(found.resampled[:, i, j], [0.025, 0.975])
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=0.05)


def test_intervals_of_changes_are_paired_by_item():
    """Two stages that are right on the very same items differ by nothing, whatever is drawn."""
    right = draws(0, 0.5)
    same = score_matrix([lines("names", right), lines("names", right, model="after")])
    assert same.interval(mean_change) == (0.0, 0.0, 0.0)
    # One item lost of 60: at most a few hundredths, where unpaired intervals would span 0.3.
    fewer = right.copy()
    fewer[np.flatnonzero(right)[0]] = False
    found = score_matrix([lines("names", right), lines("names", fewer, model="after")])
    value, low, high = found.interval(mean_change)
    assert value == pytest.approx(-1 / 60)
    assert -0.1 < low < value < high <= 0


def test_the_mean_change_of_several_tasks_has_a_narrower_interval_than_each(stages):
    found = score_matrix([stages[0], stages[1]])
    each = found.intervals(lambda scores: scores[..., 1, :] - scores[..., 0, :])
    mean = found.interval(mean_change)
    assert mean.value == pytest.approx(np.mean([one.value for one in each]))
    assert mean.high - mean.low < min(one.high - one.low for one in each)
    # Tasks are drawn independently: variances add up, and are divided by four.
    widths = [one.high - one.low for one in each]
    assert mean.high - mean.low == pytest.approx(np.hypot(*widths) / 2, rel=0.1)


def test_tasks_with_the_same_number_of_items_are_drawn_apart():
    right, after = draws(0, 0.5), draws(1, 0.7)
    stages = [[*lines("a", x, model=m), *lines("b", x, model=m)]
              for m, x in (("base", right), ("after", after))]  # fmt: skip
    found = score_matrix(stages)
    change = found.resampled[:, 1] - found.resampled[:, 0]
    assert abs(np.corrcoef(change.T)[0, 1]) < 0.1


def test_a_matrix_entry_is_what_a_report_reads(stages):
    scores = score_matrix(stages)
    entry = matrix_entry("single", ["base", "names", "topic"], scores)
    entry |= matrix_means(scores, [1, 2])
    check(entry, MATRIX, "matrix")
    values = np.array(entry["values"])
    assert entry["backward_transfer"]["value"] == pytest.approx(values[2, 0] - values[1, 0])
    assert entry["backward_transfer"]["high"] < 0
    lost = entry["forgetting"]
    assert [f["value"] for f in lost] == pytest.approx(list(values[:2].max(axis=0) - values[2]))
    # The first task alone was learned before the last stage: its F is the average.
    assert entry["average_forgetting"] == lost[0]
    assert 0 < lost[0]["low"] < lost[0]["value"] < lost[0]["high"]
    assert (np.array(entry["low"]) < values).all()
    assert (values < np.array(entry["high"])).all()
    assert entry["mean_change"] == matrix_means(scores, [])["mean_change"]
    assert matrix_means(scores, []).keys() == {"mean_change"}


def test_changes_say_which_probes_count(stages):
    found = changes(stages[1], stages[2], counted=[("names", "accuracy")])
    for row in found:
        check(row, CHANGE, "change")
    by_task = {row["task"]: row for row in found}
    assert by_task["names"]["value"] == pytest.approx(draws(2, 0.6).mean() - draws(1, 0.9).mean())
    assert by_task["names"]["high"] < 0 < by_task["topic"]["low"]
    assert (by_task["names"]["before"], by_task["names"]["after"]) == ("a", "b")
    assert by_task["names"]["counted"]
    assert not by_task["topic"]["counted"]
    assert by_task["names"]["p"] < 0.05


def test_several_seeds_of_exemplars_are_averaged():
    first, second = draws(0, 0.3), draws(1, 0.8)
    runs = [*lines("names", first, shots=1), *lines("names", second, shots=1, seed=1)]
    found = score_matrix([runs, lines("names", first, model="tuned")])
    assert found.values[:, 0] == pytest.approx([(first.mean() + second.mean()) / 2, first.mean()])


@pytest.mark.parametrize(
    ("change", "metrics", "said"),
    [
        (lambda s: [s[0], s[1][5:]], {}, "task names: 5 items are in one of the two only"),
        (lambda s: [s[0], s[1][:60]], {}, "stage 1: has no prediction of task topic"),
        (lambda s: [s[0] + s[1], s[2]], {}, "stage 0: holds several models"),
        (lambda s: [s[0], []], {}, "stage 1: holds no prediction"),
        (lambda s: s, {"names": "calibration_error"}, "less is better"),
        (lambda s: s, {"names": "rouge1"}, "rouge1 cannot be computed"),
        (lambda s: s, {"cats": "accuracy"}, "no stage has a task 'cats'"),
    ],
)
def test_stages_that_cannot_be_compared_are_refused(stages, change, metrics, said):
    with pytest.raises(InputError, match=said):
        score_matrix(change(stages), metrics)


def row(model, task, low, high, metric="accuracy", **more):
    return {"model": model, "task": task, "split": "test", "shots": 0, "metric": metric,
            "value": (low + high) / 2, "count": 50, "low": low, "high": high, **more}  # fmt: skip


def test_a_probe_counts_only_where_the_model_beats_the_baselines_with_intervals_apart():
    rows = [
        row("majority", "names", 0.1, 0.3), row("base", "names", 0.31, 0.5),
        row("majority", "topic", 0.2, 0.4), row("base", "topic", 0.39, 0.6),
        row("majority", "who", 0.0, 0.1), row("random", "who", 0.45, 0.45),
        row("base", "who", 0.4, 0.6), row("tuned", "who", 0.46, 0.6),
        row("base", "story", 0.3, 0.4, "rouge1"),
        row("majority", "same", 0.2, 0.2, "rouge1"), row("base", "same", 0.9, 0.9, "rouge1"),
        row("majority", "names", 0.0, 0.0, template="A"),
        row("base", "names", 0.0, 0.1, template="A"),
        {**row("base", "topic", 0.8, 0.9), "shots": 5},
        row("tuned", "topic", 0.8, 0.9),
    ]  # fmt: skip
    found = {(p.task, p.metric): p for p in probes(rows)}
    assert {key: p.counted for key, p in found.items()} == {
        ("same", "rouge1"): False,  # one item, or many that are alike
        ("names", "accuracy"): True,
        ("topic", "accuracy"): False,
        ("who", "accuracy"): False,
        ("story", "rouge1"): False,
    }
    assert "no majority baseline" in found["story", "rouge1"].why
    assert "choosing at random 0.450 at most" in found["who", "accuracy"].why
    assert {p.task for p in probes(rows, shots=5) if p.counted} == {"topic"}
    assert [p.counted for p in probes(rows, before="tuned")] == [True, True]
    with pytest.raises(InputError, match="no row is of model 'nobody'"):
        probes(rows, before="nobody")
