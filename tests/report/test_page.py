"""What a page is made of: tables, intervals, thinned curves, sizes that stay bounded."""

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from workdirs import (
    CARD,
    EVIL,
    dump,
    lines,
    metrics,
    preview,
    results,
    row,
    samples,
    study,
    training_run,
    write,
)

from ift_jax.errors import InputError
from ift_jax.report import page
from ift_jax.report.curves import thinned
from ift_jax.report.elements import MAX_COLOURS, MAX_POINTS, MAX_ROWS
from ift_jax.report.figures import page_svg
from ift_jax.report.inputs import read_runs
from ift_jax.report.palette import ROLES, SERIES, contrast


def sections(*folders):
    return {section.anchor: section for section in page.page_sections(read_runs(list(folders)))}


def table(section, caption):
    [found] = [t for t in section.tables if t.caption.startswith(caption)]
    return {one[0]: list(one[1:]) for one in found.rows}


# Scores


def test_scores_stand_with_intervals_beside_baselines(tmp_path):
    scores = sections(training_run(tmp_path / "w"))["scores"]
    assert table(scores, "rating: 200 test items") == {
        "always the most frequent answer": ["20 [14–26]", "20 [14–26]", "–"],
        "choosing at random": ["20", "–", "–"],
        "base model, 0 shots": ["18 [13–23]", "18 [13–23]", "119"],
        "base model, 5 shots": ["20 [14–26]", "20 [14–26]", "597 (room for 4.5 shots)"],
        "tuned model, 0 shots": ["60 [53–67]", "60 [53–67]", "119"],
    }
    [plot] = scores.plots
    tuned = plot.dots[-1]
    assert (round(tuned.low, 1), round(tuned.value, 1), round(tuned.high, 1)) == (53.2, 60.0, 66.8)
    assert "tuned model, 0 shots: 60 [53–67]" in plot.alt


def test_what_runs_share_stands_once_and_what_differs_names_its_run(tmp_path):
    folders = [training_run(tmp_path / "a", tuned=0.5), training_run(tmp_path / "b", tuned=0.6)]
    names = list(table(sections(*folders)["scores"], "rating: 200 test items"))
    assert names == [
        "always the most frequent answer", "choosing at random", "base model, 0 shots",
        "base model, 5 shots", "tuned model, 0 shots, a", "tuned model, 0 shots, b",
    ]  # fmt: skip


def test_scores_by_template_and_class(tmp_path):
    parts = sections(training_run(tmp_path / "w"))["parts"]
    assert table(parts, "rating: accuracy by template")["Predict the rating"][0] == "100"
    assert table(parts, "rating: accuracy by class")["5"] == ["40", "50 [35–65]"]


def test_parts_are_of_the_models_in_the_table_of_scores(tmp_path):
    """Not of the weights in between, of an earlier stage, or of another size of the curve."""
    folder = training_run(tmp_path / "w")
    found = json.loads((folder / "results.json").read_text())
    own = [one for one in found["rows"] if "class" in one]
    found["rows"] += [{**one, "value": 0.1, "interpolation": 0.5} for one in own]
    for stage, size, value in ((2, 1000, 0.3), (2, 50, 0.2), (1, 1000, 0.1)):
        more = {"model": "curve", "value": value, "stage": stage, "train_size": size}
        found["rows"] += [{**one, **more} for one in found["rows"] if one in own]
    write(folder, {"results.json": dump(found)})
    parts = table(sections(folder)["parts"], "rating: accuracy by class")
    assert parts["5"] == ["40", "50 [35–65]", "30 [35–65]"]


def test_seeds_are_a_mean_between_their_ends(tmp_path):
    found = [row("single", "rating", "accuracy", v, seed=s) for s, v in enumerate((0.4, 0.5, 0.6))]
    folder = write(tmp_path / "w", {"config.json": "{}", "results.json": dump({"rows": found})})
    scores = sections(folder)["scores"]
    low, high = found[0]["low"] * 100, found[2]["high"] * 100
    assert table(scores, "rating")["single, 0 shots"] == [f"50 [{low:.0f}–{high:.0f}]"]
    assert any("3 seeds" in note for note in scores.notes)


def test_a_study_shows_the_last_stage_at_the_largest_size(tmp_path):
    scores = sections(study(tmp_path / "s"))["scores"]
    assert table(scores, "rating: 200")["single, 0 shots"][0].startswith("60 [")
    assert table(scores, "topic: 200")["single, 0 shots"] == ["15 [10–20]"]  # not stage 1's 70
    assert table(scores, "All tasks")["topic (accuracy)"][-5:] == [
        "15 [10–20]", "55 [48–62]", "62 [55–69]", "50 [43–57]", "–",
    ]  # fmt: skip


# Studies


def test_the_matrix_holds_scores_transfer_and_forgetting(tmp_path):
    forgetting = sections(study(tmp_path / "s"))["forgetting"]
    [found] = [t for t in forgetting.tables if t.caption.startswith("single, seed 0")]
    rows = {line[0]: line[1:] for line in found.rows}
    assert rows["after probes"][1] == "70 [65–75]"
    assert rows["after rating"][1] == "15 [10–20]"
    assert rows["forgetting F"][:2] == ["−38.0 [−44.0, −32.0]", "+55.0 [+49.0, +61.0]"]
    assert found.shades[1][1] == 0.7
    assert "−46.0 [−50.0, −42.0] percentage points" in found.notes[0]
    assert found.notes[1].startswith("Average F")
    assert "+46.0 [+42.0, +50.0] percentage points" in found.notes[1]


def test_changes_per_task_have_intervals_and_what_does_not_count_is_grey(tmp_path):
    forgetting = sections(study(tmp_path / "s"))["forgetting"]
    changes = table(forgetting, "Change per task")
    assert changes["single: names"][2:] == ["−55.0 [−61.0, −49.0]", "0.0001", "200", "yes"]
    assert changes["single: summary"][-1] == "no"
    dots = forgetting.plots[0].dots
    assert [dot.colour for dot in dots] == [1, 1, 1, -1]
    assert dots[0].low == pytest.approx(-61)
    assert len({tuple(plot.reach) for plot in forgetting.plots}) == 1  # drawn to one scale


def test_a_study_says_what_it_found_which_probes_count_and_what_it_cost(tmp_path):
    found = sections(study(tmp_path / "s"))
    assert found["findings"].findings[1] == ("What was forgotten?", "names, topic and nli.")
    probes = table(found["forgetting"], "Which probes count")
    assert probes["summary"] == ["rougeL", "probes", "no", "70 [64–76] against 10 [6–14]"]
    costs = table(found["costs"], "What each run of the study cost")
    assert costs["single of 50"] == ["0", "12", "6,000", "100", "1 min 33 s", "42 s"]


def test_a_learning_curve_has_bands_and_the_levels_of_prompting(tmp_path):
    sizes = sections(study(tmp_path / "s"))["sizes"]
    [plot] = sizes.plots  # of the task that was to be learned
    curve = plot.curves[0]
    assert (curve.label, list(curve.x)) == ("single", [50, 100, 250, 500, 1000])
    assert all(low < y < high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))
    levels = [c.label for c in plot.curves if c.style == "dashed"]
    # Not of "single", which has a curve, nor of other tunings.
    assert levels == ["most frequent", "random", "base, 0 shots", "base, 1 shot", "base, 5 shots"]
    assert list(table(sizes, "rating: accuracy by the number")) == [
        "50", "100", "250", "500", "1,000",
    ]  # fmt: skip


def test_task_score_stands_against_the_mean_retained_score(tmp_path):
    mixing = sections(study(tmp_path / "s"))["mixing"]
    [curve] = mixing.plots[0].curves
    assert list(curve.x) == pytest.approx([70, 66.875, 57.5, 41.875, 20])
    assert list(curve.y) == pytest.approx([20, 28.75, 37.5, 46.25, 55])
    assert list(curve.names) == ["0%", "25%", "50%", "75%", "100% single"]
    shares = table(mixing, "Scores by the share")
    assert shares["single, 50% tuned"][:3] == ["57.5", "38 [31–44]", "57 [51–64]"]


def test_a_workdir_shows_its_scores_between_base_and_tuned(tmp_path):
    folder = training_run(tmp_path / "w")
    found = json.loads((folder / "results.json").read_text())
    for share in (0.0, 0.5, 1.0):
        found["rows"].append(
            row("tuned", "rating", "accuracy", 0.2 + 0.4 * share, interpolation=share)
        )
    write(folder, {"results.json": dump(found)})
    alone = sections(folder)["mixing"]
    assert table(alone, "Scores by the share")["tuned, 50% tuned"] == ["40 [33–47]"]
    assert not alone.plots  # nothing was scored that could have been forgotten
    for share in (0.0, 0.5, 1.0):
        found["rows"].append(
            row("tuned", "names", "exact_match", 0.9 - share / 2, interpolation=share)
        )
    write(folder, {"results.json": dump(found)})
    [plot] = sections(folder)["mixing"].plots
    [curve] = plot.curves
    assert list(curve.x) == pytest.approx([90, 65, 40])
    assert list(curve.y) == pytest.approx([20, 40, 60])
    # Of perplexity less is better, and it is no share: it has no mean with them.
    for share in (0.0, 0.5, 1.0):
        found["rows"].append(
            row("tuned", "notes", "perplexity", 20 + 10 * share, interpolation=share)
        )
    write(folder, {"results.json": dump(found)})
    [table_] = sections(folder)["mixing"].tables
    assert table_.rows[1][:2] == ["tuned, 50% tuned", "65.0"]
    assert "notes: perplexity" in table_.columns
    assert table_.notes[0] == "Retained is the mean over names."


def test_two_studies_keep_apart_what_their_runs_of_one_name_found(tmp_path):
    one, two = study(tmp_path / "one"), study(tmp_path / "two")
    found = json.loads((two / "results.json").read_text())
    for entry in (*found["drift"], *found["changes"]):
        entry["value"] += 0.1
    for entry in found["rows"]:
        if "interpolation" in entry:
            entry["value"] /= 2
    write(two, {"results.json": dump(found)})
    shown = sections(one, two)
    drift = table(shown["forgetting"], "Early signs")
    assert (drift["single, one"][0], drift["single, two"][0]) == ("0.021", "0.121")
    changes = table(shown["forgetting"], "Change per task")
    assert changes["single, one: names"][2].startswith("−55.0")
    assert changes["single, two: names"][2].startswith("−45.0")
    titles = [plot.title for plot in shown["forgetting"].plots]
    assert "single, one: change per task" in titles
    assert "single, two: change per task" in titles
    first, second = (plot.curves[0] for plot in shown["mixing"].plots)
    assert [2 * y for y in second.y] == pytest.approx(list(first.y))
    asked = [question for question, _ in shown["findings"].findings]
    assert "one: What was forgotten?" in asked
    assert "two: What was forgotten?" in asked
    costs = table(shown["costs"], "What each run of the study cost")
    assert {"single, one of 50", "single, two of 50"} == set(costs)
    levels = table(shown["forgetting"], "Which probes count")
    assert levels["names"][1] == "probes, two"  # the later of two lines


# Curves


def test_thinning_keeps_ends_means_and_gaps():
    points = [(step, float(step)) for step in range(1, 1001)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert (thin[0][0], thin[-1][0]) == (1, 1000)
    assert sum(y for _, y in thin) / 100 == pytest.approx(500.5)
    assert thinned(points[:100], 100) == points[:100]
    broken = thinned([(1, math.nan), (2, math.nan), (3, 1.0), (4, math.nan)], 2)
    assert math.isnan(broken[0][1])
    assert broken[1] == (4, 1.0)


def test_training_curves_have_steps_units_and_validation(tmp_path):
    training = sections(training_run(tmp_path / "w"))["training"]
    plots = {plot.title: plot for plot in training.plots}
    assert list(plots) == [
        "Loss", "Token accuracy", "rating: accuracy in validation", "Learning rate",
        "Gradient norm",
    ]  # fmt: skip
    thin, bold = plots["Loss"].curves
    assert (thin.label, bold.label) == ("training", "validation")
    assert (len(thin.x), list(bold.x)) == (120, [30, 60, 90, 120])
    assert (plots["Loss"].x_label, plots["Loss"].y_label) == ("step", "nats per token")
    assert plots["Token accuracy"].y_label == "percent"
    assert max(plots["Token accuracy"].curves[1].y) > 50  # stored as shares
    assert "at step 120" in plots["Loss"].alt
    assert table(training, "Training in numbers")["w"][-1] == "step 90, by accuracy 0.550"


def test_a_long_run_does_not_make_a_long_page(tmp_path):
    folder = training_run(tmp_path / "w")
    write(folder, {"metrics.jsonl": lines(metrics(num_steps=6000))})
    found = sections(folder)
    assert all(len(curve.x) <= MAX_POINTS for p in found["training"].plots for curve in p.curves)
    assert "A point of a training curve is the mean of up to 40 steps." in found["training"].notes
    assert len(page.render(list(found.values()), ["w"])) < 200_000


def test_many_rows_and_runs_are_cut_with_a_note(tmp_path):
    folders = [training_run(tmp_path / f"run{n:02}", tuned=0.3 + n / 100) for n in range(24)]
    rows = [row(f"model{n}", "rating", "accuracy", 0.5) for n in range(300)]
    write(folders[0], {"results.json": dump({"rows": rows})})
    found = sections(*folders)
    assert "and 16 more workdirs, whose curves are not drawn" in found["training"].notes
    assert all(len({c.colour for c in p.curves}) <= MAX_COLOURS for p in found["training"].plots)
    [scores] = found["scores"].tables
    assert len(scores.rows) == MAX_ROWS
    assert re.fullmatch(r"and \d+ more rows in results\.json", scores.notes[0])
    assert "and 4 more workdirs" in found["overview"].tables[0].notes


def test_the_mean_that_selects_is_drawn_where_there_are_several_tasks(tmp_path):
    checked = {"validation/a/accuracy": 0.4, "validation/b/accuracy": 0.6}
    line = {"step": 3, "validation_loss": 1.0, **checked, "validation_accuracy": 0.5}
    folder = write(tmp_path / "w", {"config.json": "{}", "metrics.jsonl": lines([line])})
    titles = [plot.title for plot in sections(folder)["training"].plots]
    assert titles[1:] == [
        "a: accuracy in validation", "b: accuracy in validation", "Mean accuracy in validation",
    ]  # fmt: skip


def test_early_signs_of_forgetting_and_penalties_are_drawn(tmp_path):
    logged = [
        {"step": 1, "loss": 2.0, "text_kl": 0.1, "l2sp": 0.01},
        {"step": 1, "validation_loss": 2.1, "weight_drift": 0.002, "kl_from_base": 0.03},
        {"step": 2, "loss": 1.9, "text_kl": 0.2, "l2sp": 0.02},
    ]
    folder = write(tmp_path / "w", {"config.json": "{}", "metrics.jsonl": lines(logged)})
    plots = {plot.title: plot.curves for plot in sections(folder)["training"].plots}
    assert [list(c.y) for c in plots["Distance from the base"]] == [[0.002]]
    assert [list(c.y) for c in plots["KL from the base on neutral text"]] == [[0.1, 0.2], [0.03]]
    assert [list(c.y) for c in plots["L2-SP penalty"]] == [[0.01, 0.02]]
    assert "EWC penalty" not in plots


def test_costs_are_tokens_speed_and_time(tmp_path):
    costs = sections(training_run(tmp_path / "w"))["costs"]
    assert table(costs, "What training cost")["w"] == [
        "120", "134,400", "7,920 (6 %)", "403", "5 min 34 s",
    ]  # fmt: skip
    assert len(costs.tables[1].rows) == 2  # prompts of 0 and of 5 shots


# What went in and came out


def test_configs_that_differ_are_shown_field_by_field(tmp_path):
    folders = [
        training_run(tmp_path / "a", optimizer__peak_lr=1e-5),
        training_run(tmp_path / "b", optimizer__peak_lr=1e-4, train__seed=3, study__task="rating"),
    ]
    found = sections(*folders)
    assert table(found["settings"], "Every field in which the configs differ") == {
        "config.optimizer.peak_lr": ["1e-05", "0.0001"],
        "config.train.seed": ["0", "3"],
    }
    assert table(found["overview"], "Main settings")["trained on"] == ["rating", "rating"]


def test_the_overview_names_what_is_trained_and_not_what_is_only_scored(tmp_path):
    tasks = [{"name": "rating", "weight": 0.0}, {"name": "topic", "weight": 1.0}, {"name": "names"}]
    folder = write(tmp_path / "w", {"config.json": dump({"data": {"tasks": tasks}})})
    shown = table(sections(folder)["overview"], "Main settings")
    assert shown["trained on"] == ["topic, names"]


def test_data_says_what_each_task_got_and_what_was_rejected_and_why(tmp_path):
    data = sections(training_run(tmp_path / "w"))["data"]
    assert table(data, "Splits")["rating: train"][:3] == ["800", "96,000", "1,600"]
    assert table(data, "Records")["rating"][:3] == [
        "4,800",
        "3",
        "broken_json: 2, special_token: 1",
    ]
    assert table(data, "What each task gets")["rating"][0] == "800 of 800"
    rejected = table(data, "Rejected records")
    assert rejected["reviews.jsonl:12"] == ["rating", "broken_json", EVIL]


def test_a_preview_marks_exactly_what_is_trained_and_keeps_it_when_cut(tmp_path):
    folder = training_run(tmp_path / "w")
    first = sections(folder)["previews"].previews[0]
    assert [trained for trained, _ in first.runs] == [False, True]
    assert list(first.runs[1][1]) == ["5", "<|im_end|>"]
    [line, _] = preview()
    long = {**line, "tokens": [{"text": "x", "trained": False}] * 5000 + line["tokens"]}
    write(folder, {"data/preview.jsonl": lines([long])})
    [cut] = sections(folder)["previews"].previews
    assert list(cut.runs[-1][1]) == ["5", "<|im_end|>"]
    assert " … 4,619 tokens left out … " in cut.runs[0][1]


def test_samples_of_a_prompt_stand_side_by_side_over_steps_and_runs(tmp_path):
    folders = [training_run(tmp_path / "a"), training_run(tmp_path / "b")]
    found = sections(*folders)["samples"]
    assert [who for who, _ in found.samples[0].answers] == [
        f"{run}, step {step}" for run in "ab" for step in (0, 30, 90, 120)
    ]
    assert found.samples[0].answers[4][1].startswith("b 0 ")
    assert any("4 steps, the first and the last among them" in note for note in found.notes)
    one = sections(folders[0])["samples"].samples[0]
    assert [who for who, _ in one.answers] == ["step 0", "step 30", "step 90", "step 120"]


def test_of_many_runs_the_last_samples_are_shown(tmp_path):
    found = sections(*(training_run(tmp_path / f"run{n}") for n in range(9)))["samples"]
    assert [who for who, _ in found.samples[0].answers] == [f"run{n}, step 120" for n in range(8)]
    assert "and 1 more workdirs with samples" in found.notes


def test_of_many_data_sets_the_first_are_shown(tmp_path):
    folders = [training_run(tmp_path / f"run{n}") for n in range(5)]
    for number, folder in enumerate(folders):
        write(folder, {"data/card.json": dump({**CARD, "max_length": number})})
    data = sections(*folders)["data"]
    assert [t.caption for t in data.tables if t.caption.startswith("Splits")] == [
        "Splits (run0)", "Splits (run1)", "Splits (run2)",
    ]  # fmt: skip
    assert data.notes == ["and 2 more sets of data, in the workdirs' data/card.json"]


def test_what_is_missing_leaves_a_line(tmp_path):
    folder = training_run(tmp_path / "w")
    for name in ("metrics.jsonl", "samples.jsonl", "results.json", "data/card.json"):
        (folder / name).unlink()
    found = sections(folder)
    assert list(found["training"].notes) == ["Left out: there is no metrics.jsonl in w."]
    assert list(found["samples"].notes) == ["Left out: there is no samples.jsonl in w."]
    assert "Left out: there is no data/card.json in w." in found["data"].notes
    both = sections(folder, training_run(tmp_path / "v"))
    assert "Incomplete: there is no samples.jsonl in w." in both["samples"].notes
    assert not any("study" in note for s in sections(study(tmp_path / "study")).values()
                   for note in s.notes if "there is no" in note)  # fmt: skip


# The page and its figures


def test_text_of_users_is_escaped_everywhere(tmp_path):
    folder = study(tmp_path / "s")
    found = results()
    for one in found["rows"]:
        one["task"] = one["model"] = EVIL
        one["metric"] = "accuracy & $x$"
    write(folder / "runs" / "single", {"samples.jsonl": lines(samples(EVIL))})
    odd = training_run(tmp_path / "<b>w</b>")
    write(odd, {"results.json": dump(found)})
    html = page.render(page.page_sections(read_runs([folder, odd])), ["<b>w</b>"])
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("&lt;script&gt;") > 20


def test_figures_are_well_formed_in_the_colours_of_the_page_and_share_no_id(tmp_path):
    plots = page.all_plots(list(sections(study(tmp_path / "s")).values()))
    svgs = [page_svg(plot) for plot in plots]
    ids = [found for svg in svgs for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)) > 100
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#ffffff"}  # all others are variables
        assert "var(--muted)" in svg
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)
    assert page_svg(plots[0]) == svgs[0]  # the same plot is the same file


def test_colours_can_be_told_from_both_grounds():
    for side in ("light", "dark"):
        ground, raised = (getattr(ROLES[role], side) for role in ("paper", "raised"))
        for shade in (*SERIES, ROLES["ink"], ROLES["muted"]):
            assert contrast(getattr(shade, side), ground) >= 4.5
        assert contrast(getattr(ROLES["muted"], side), raised) >= 4.5
        assert contrast(getattr(ROLES["ink"], side), getattr(ROLES["mark"], side)) >= 7


def test_a_report_writes_the_page_and_its_figures(tmp_path):
    folder = training_run(tmp_path / "w")
    report = page.write_report([folder], tmp_path / "report.html", tmp_path / "figures")
    assert report.page.read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.suffix for path in report.figures) == [".png"] * 6 + [".svg"] * 6
    assert all(path.stat().st_size > 1000 for path in report.figures)
    assert report.notes == []
    svg = ElementTree.parse(tmp_path / "figures" / "01_scores_rating_test.svg").getroot()
    assert "tuned model, 0 shots" in "".join(svg.itertext())


def test_without_matplotlib_the_page_says_that_it_has_no_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = training_run(tmp_path / "w")
    report = page.write_report([folder], tmp_path / "report.html")
    html = report.page.read_text()
    assert report.notes == [page.WITHOUT_FIGURES]
    assert "Figures are left out, since matplotlib is not installed" in html
    assert "<svg" not in html
    assert "60 [53–67]" in html
    with pytest.raises(InputError, match=r"--figures: needs matplotlib"):
        page.write_report([folder], tmp_path / "report.html", tmp_path / "figures")


def test_a_study_can_be_shown_beside_a_run(tmp_path):
    found = sections(study(tmp_path / "s"), training_run(tmp_path / "w"))
    assert json.dumps(found)  # plain text and numbers
    assert "tuned model, 0 shots, w" in table(found["scores"], "rating: 200")


def test_a_run_without_a_validation_split_says_which_step_was_taken(tmp_path):
    chosen = {"step": 6, "by": "last step", "last_step": 6, "why": "no validation split"}
    results = {"rows": [], "chosen": chosen}
    lines = '{"step": 6, "loss": 1.0}\n'
    folder = write(tmp_path / "w", {"config.json": "{}", "results.json": dump(results),
                                    "metrics.jsonl": lines})  # fmt: skip
    rows = table(sections(folder)["training"], "Training in numbers")
    assert next(iter(rows.values()))[-1] == "step 6, last step"


def test_a_study_says_which_step_of_each_run_was_tested(tmp_path):
    found = sections(study(tmp_path / "one"), study(tmp_path / "two"))
    rows = table(found["training"], "Training in numbers")
    assert {name: row[-1] for name, row in rows.items() if "single" in name} == {
        "one/runs/single": "step 90, by accuracy 0.550",
        "two/runs/single": "step 90, by accuracy 0.550",
    }
    [alone] = [s for s in page.page_sections(read_runs([tmp_path / "one"])) if s.anchor == "costs"]
    assert "single of 50" in table(alone, "What each run of the study cost")  # one study: no name
