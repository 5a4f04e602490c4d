"""The table of a run: which rows it shows, and how."""

from ift_jax.report.table import results_table


def row(model, metric, value, **more):
    return {"model": model, "task": "names", "split": "test", "shots": 0, "metric": metric,
            "value": value, "count": 50, "low": value - 0.1, "high": value + 0.1,
            **more}  # fmt: skip


def test_parts_of_the_items_are_not_in_the_table():
    whole = [row("base", "accuracy", 0.5), row("tuned", "accuracy", 0.75)]
    parts = [
        row("base", "accuracy", 0.11, template="Rate", count=3),
        row("base", "accuracy", 0.22, **{"class": "bad"}, count=4),
        row("base", "rouge1", 0.33, template="Rate"),
    ]
    assert results_table([*whole, *parts]) == results_table(whole)


def test_what_is_no_share_is_shown_as_it_is():
    text = results_table([row("base", "perplexity", 12.5), row("base", "accuracy", 0.5)])
    assert "12.50 [12.40–12.60]" in text
    assert "50 [40–60]" in text
    assert "Percent, but for perplexity, with 95 % intervals; 50 test items of names." in text


def test_baselines_have_names_and_exact_values_no_interval():
    chance = {**row("random", "accuracy", 0.25), "low": 0.25, "high": 0.25}
    lines = results_table([chance, row("copy", "rouge1", 0.4)]).splitlines()
    assert lines[2].split() == ["choosing", "at", "random", "25", "–"]
    assert lines[3].split() == ["copying", "the", "input", "–", "40", "[30–50]"]


def test_the_cost_of_prompts_and_missing_exemplars_are_said():
    rows = [
        row("base", "accuracy", 0.5, prompt_tokens=71.2, shots_given=0.0),
        {**row("base", "accuracy", 0.5, prompt_tokens=900.0, shots_given=17.5), "shots": 20},
        row("tuned", "accuracy", 0.5, prompt_tokens=71.2, shots_given=0.0),
        row("random", "accuracy", 0.5),
    ]
    last = results_table(rows).splitlines()[-1]
    assert last == "Tokens of a prompt: names 71 at 0 shots, 900 at 20 shots (room for 17.5)."
