"""Whole runs on a tiny model: workdir contents, resume, selection, loss parity with torch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import run_tree
from transformers import AutoTokenizer

from ift_jax.checkpoint import Checkpoints, load_workdir
from ift_jax.config import build_run_config
from ift_jax.data import pipeline
from ift_jax.errors import InputError
from ift_jax.pretrained import load_pretrained
from ift_jax.report.table import score_text
from ift_jax.sharding import make_mesh
from ift_jax.train import run
from ift_jax.train.run import train


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    """A workdir after an undisturbed run, and its result rows."""
    workdir = tmp_path_factory.mktemp("run") / "W"
    rows = train(build_run_config(run_tree(tiny_llama)), workdir)
    return workdir, rows


def test_a_run_writes_its_workdir(finished):
    workdir, rows = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["rows"] == rows
    assert {"step", "by", "value", "last_step", "why"} == results["chosen"].keys()
    card = json.loads((workdir / "data" / "card.json").read_text())
    assert card["tasks"]["rating"]["splits"]["train"]["examples"] == 60
    assert (workdir / "data" / "rejected.jsonl").read_text() == ""
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.is_dir())[-1] == 6
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    first = next(line for line in lines if line["step"] == 1)
    assert {"loss", "token_accuracy", "tokens", "learning_rate"} <= set(first)
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 3, 6]


def test_a_run_leaves_a_report_of_itself(finished):
    workdir, rows = finished
    html = (workdir / "report.html").read_text()
    assert "rating: 15 test items" in html
    tuned = next(r for r in rows if r["model"] == "tuned")
    assert html.count(f">{score_text(tuned)}<") >= 1
    assert "<svg" in html  # matplotlib is one of the tests' packages
    previews = (workdir / "data" / "preview.jsonl").read_text().splitlines()
    assert len(previews) == 2


def test_a_report_that_is_missing_is_made_when_the_run_is_started_again(finished, tiny_llama):
    workdir, _ = finished
    (workdir / "report.html").unlink()
    train(build_run_config(run_tree(tiny_llama)), workdir)
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize(
    ("num_steps", "settings", "saved"),
    [
        (6, {}, [6]),
        (24, {}, [10, 20, 24]),
        (6, {"train__save_every": 4}, [4, 6]),
        (6, {"train__eval_every": 5}, [5, 6]),
    ],
)
def test_a_run_that_validates_at_its_end_alone_is_kept_all_the_same(
    tiny_llama, tmp_path, monkeypatch, num_steps, settings, saved
):
    """A kill costs a tenth of it at most."""
    kept, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, *a: (kept.append(int(a[0].step)), save(self, *a))
    )
    changes = {"train__eval_every": 0, "train__num_steps": num_steps, **settings}
    config = build_run_config(run_tree(tiny_llama, **changes))
    run.tune(config, tmp_path, make_mesh(config.mesh))
    assert kept == saved


def test_a_run_that_diverges_says_so_and_keeps_what_was_before(tiny_llama, tmp_path):
    tree = run_tree(tiny_llama, train__eval_every=1, optimizer__peak_lr=1e30)
    with pytest.raises(InputError, match=r"step [2-5]: the loss is .*lower config.optimizer.peak"):
        train(build_run_config(tree), tmp_path / "W")
    checkpoints = Checkpoints.existing(tmp_path / "W")
    assert checkpoints.latest() in (1, 2, 3, 4)
    lines = [
        json.loads(line) for line in (tmp_path / "W" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)


def test_tensorboard_shows_the_same_numbers(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, _ = finished
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    written = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(written)


def test_results_hold_base_at_each_shot_and_tuned_at_zero(finished):
    _, every = finished
    rows = [row for row in every if not row.keys() & {"template", "class"}]
    found = {(r["model"], r["shots"], r["metric"]) for r in rows}
    assert found == {
        *(("majority", 0, metric) for metric in ("accuracy", "exact_match")),
        *(("random", 0, metric) for metric in ("accuracy", "exact_match")),
        ("copy", 0, "exact_match"),
        *(("base", shots, metric) for shots in (0, 1) for metric in ("accuracy", "exact_match")),
        *(("tuned", 0, metric) for metric in ("accuracy", "exact_match")),
    }
    for row in rows:
        assert row["task"] == "rating"
        assert row["split"] == "test"
        assert row["count"] == 15
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    # Of both models also by class, whose items are those of the whole.
    for model, shots in (("base", 0), ("base", 1), ("tuned", 0)):
        counts = [
            row["count"]
            for row in every
            if (row["model"], row["shots"], row["metric"]) == (model, shots, "accuracy")
            and "class" in row
        ]
        assert sum(counts) == 15
        assert len(counts) > 1


def test_training_lowers_the_loss(finished):
    workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.2


def test_a_mixture_trains_from_a_prepared_set_and_resumes(tiny_llama, tmp_path):
    """Stopped half-way and run again, the parameters are those of a run that was not stopped."""
    from ift_jax.data.prepared import prepare

    tree = run_tree(tiny_llama, evaluation__shots=[0, 1])
    other = {**tree["data"]["tasks"][0], "name": "replayed", "train_size": 20, "replay": True,
             "template_names": ["Write a review"], "split_by": ["review_body"],
             "validation_fraction": 0.0, "test_fraction": 0.0,
             "validation_size": 0, "test_size": 0}  # fmt: skip
    del other["balance_by"]
    tree["data"]["tasks"].append(other)
    tree["data"]["mixture"] = {"replay_share": 0.3}
    config = build_run_config(tree)
    card = prepare(config.data, load_pretrained(tiny_llama).chat, tmp_path / "set")
    assert card["mixture"]["tasks"]["replayed"]["share"] == pytest.approx(0.3, abs=0.01)
    tree["data"]["prepared"] = str(tmp_path / "set")
    config = build_run_config(tree)

    rows = train(config, tmp_path / "whole")
    assert {r["task"] for r in rows} == {"rating"}
    stored = json.loads((tmp_path / "whole" / "data" / "card.json").read_text())
    assert stored == card

    def stop_after_three(self, state, score, frozen):
        save(self, state, score, frozen)
        if int(state.step) == 3:
            raise KeyboardInterrupt

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    assert Checkpoints(tmp_path / "stopped").latest() == 3
    assert train(config, tmp_path / "stopped") == rows
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()
             for name in ("whole", "stopped")]  # fmt: skip
    losses = [[(r["step"], r["loss"]) for r in map(json.loads, one) if "loss" in r]
              for one in lines]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_run_does_not_go_on_with_other_data(tiny_llama, tmp_path):
    tree = run_tree(tiny_llama, train__eval_every=0, train__save_every=2, train__num_samples=0)
    task = {"name": "sums", "source": str(tmp_path / "sums.jsonl"), "split_by": []}
    tree["data"]["tasks"] = [{**task, "validation_fraction": 0.0, "test_fraction": 0.2}]
    config = build_run_config(tree)
    records = [json.dumps({"prompt": f"{n} + {n}?", "completion": f"{2 * n}"}) for n in range(40)]
    whole = "\n".join(records) + "\n"
    source = tmp_path / "sums.jsonl"
    source.write_text(whole)
    save = Checkpoints.save

    def stopped(self, *state):
        save(self, *state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "W")
    card = (tmp_path / "W" / "data" / "card.json").read_text()
    source.write_text(whole.replace("2 + 2?", "two and two?"))
    with pytest.raises(InputError, match="the data of task sums is not what the run began with"):
        train(config, tmp_path / "W")
    assert (tmp_path / "W" / "data" / "card.json").read_text() == card
    source.write_text(whole)
    assert train(config, tmp_path / "W")


def test_what_a_mixture_leaves_out_is_named(tiny_llama, tmp_path, capsys):
    tree = run_tree(tiny_llama)
    task = {**tree["data"]["tasks"][0], "train_size": 20}
    tree["data"]["tasks"] = [task, {**task, "name": "rare", "weight": 0.01}]
    tree["data"]["mixture"] = {"rates": "weights"}
    config = build_run_config(tree)
    data = pipeline.build(config.data, load_pretrained(tiny_llama).chat)
    run._say_what_is_left_out(pipeline.card(data))
    said = "not trained, their share of the mixture being less than one example: rare\n"
    assert capsys.readouterr().err == said


def test_float16_is_refused_for_full_tuning_alone(tiny_llama, tmp_path):
    tree = run_tree(tiny_llama)
    tree["model"]["param_dtype"] = "float16"
    with pytest.raises(InputError, match="param_dtype=float16: full tuning would keep"):
        train(build_run_config(tree), tmp_path / "W")
    tree["peft"] = {"method": "lora"}
    run.check_frozen(build_run_config(tree))


def kill_when(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_goes_on_to_the_same_parameters(finished, tiny_llama, tmp_path, capsys):
    undisturbed, _ = finished
    workdir = tmp_path / "W"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(run_tree(tiny_llama)))
    code = (
        "import json, sys, jax\n"
        "from ift_jax.config import build_run_config\n"
        "from ift_jax.train.run import train\n"
        "train(build_run_config(json.load(open(sys.argv[1]))), sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config), str(workdir)],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics, refused = workdir / "metrics.jsonl", []

    def has_come_far():
        if not refused and (workdir / "config.json").exists():
            with pytest.raises(InputError, match="another process works in it") as caught:
                train(build_run_config(run_tree(tiny_llama)), workdir)
            refused.append(caught)
        return metrics.exists() and '"step": 4' in metrics.read_text()

    kill_when(has_come_far, process)
    assert refused
    assert not (workdir / "results.json").exists()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest() == 3
    checkpoints.close()
    train(build_run_config(run_tree(tiny_llama)), workdir)
    assert "steps 3 to 6" in capsys.readouterr().err
    a, b = (load_workdir(w, which="latest").params for w in (undisturbed, workdir))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    def logged(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [(m["step"], m["loss"]) for m in map(json.loads, lines) if "loss" in m]

    assert logged(workdir) == logged(undisturbed)


def test_the_best_checkpoint_is_kept_and_loaded(tiny_llama, tmp_path):
    # A rate this high makes the model worse, so that the best step is not the last.
    tree = run_tree(tiny_llama, optimizer__peak_lr=3.0, optimizer__warmup_steps=0)
    tree["optimizer"]["clip_norm"] = 0.0
    tree["train"]["eval_every"] = 1
    train(build_run_config(tree), tmp_path / "W")
    lines = (tmp_path / "W" / "metrics.jsonl").read_text().splitlines()
    losses = {
        m["step"]: m["validation_loss"] for m in map(json.loads, lines) if "validation_loss" in m
    }
    del losses[0]  # the base model's, which is no checkpoint
    best = min(losses, key=losses.get)
    checkpoints = Checkpoints(tmp_path / "W")
    assert checkpoints.choose("best") == best
    assert checkpoints.choose("latest") == 6
    assert best != 6
    checkpoints.close()


def test_loss_curve_equals_torch(tiny_llama, tmp_path):
    curve_equals_torch(tiny_llama, tmp_path, rows=4, steps=10, rate=1e-4)


@pytest.mark.slow
def test_loss_curve_of_smollm2_equals_torch(smollm2, tmp_path):
    folder = tmp_path / "smollm2"
    load_pretrained(smollm2).save_pretrained(folder)
    curve_equals_torch(folder, tmp_path, rows=2, steps=10, rate=5e-5, row_length=192)


def curve_equals_torch(folder, tmp_path, *, rows, steps, rate, row_length=512):
    """Ten steps of full tuning, against a plain loop of torch and transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from ift_jax.data import pipeline
    from ift_jax.data.loader import Batches, RowSource
    from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
    from ift_jax.train.step import Constants, init_state, make_step

    model = load_pretrained(folder)
    tree = run_tree(folder, data__max_length=row_length)
    data = pipeline.build(build_run_config(tree).data, model.chat)
    examples = data.tokens("train")
    source = RowSource(examples, row_length, seed=0, packing="none")
    batches = Batches(source, rows, 0)
    config = OptimizerConfig(
        peak_lr=rate, warmup_steps=0, schedule="constant", weight_decay=0.01, clip_norm=1.0
    )
    optimizer = make_optimizer(config, steps)
    step = jax.jit(make_step(model.structure, optimizer), donate_argnums=0)
    state = init_state(model.params, optimizer)
    ours = []
    for number in range(steps):
        state, metrics = step(state, Constants({}), batches[number])
        ours.append(float(metrics.sums.nll) / float(metrics.sums.weight))

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decayed = [p for n, p in reference.named_parameters() if "norm" not in n]
    norms = [p for n, p in reference.named_parameters() if "norm" in n]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=rate)
    theirs = []
    for number in range(steps):
        total, weight = 0.0, 0
        for row in range(rows):
            (member,) = source.members(number * rows + row)
            ids, trained = examples.get(member)
            ids, trained = torch.tensor(ids.astype(np.int64))[None], torch.tensor(trained)[None]
            labels = torch.where(trained, ids, -100)
            logits = reference(ids).logits
            total = total + torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], reduction="sum"
            )
            weight += int(trained[0, 1:].sum())
        mean = total / weight
        adamw.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
        theirs.append(float(mean.detach()))
    assert ours[0] != pytest.approx(ours[-1], rel=1e-2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_what_a_run_exports_asks_and_stops_as_it_was_trained(tiny_llama, tmp_path):
    """Also where the base has no chat template, and another end than that of a turn."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    for name in ("config.json", "generation_config.json"):
        path = base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 7}))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = build_run_config(run_tree(base, train__num_steps=1, train__eval_every=0))
    tuned = run.tune(config, tmp_path / "W", make_mesh(config.mesh)).model
    # In a process of its own nothing has asked for the chat format before.
    code = "import sys, ift_jax; ift_jax.load_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "W", tmp_path / "out"], check=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "How many stars?"}]
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert ids == tuned.chat.prompt_ids(asked).tolist()
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == sorted({7, tuned.chat.end_of_turn_id})
    assert len(written["eos_token_id"]) == 2
