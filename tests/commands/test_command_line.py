"""`ift VERB` as a user types it: what it prints, that it goes on, and what it never does."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from workplace import Workplace, review

from ift_jax.evaluation.predictions import read_lines
from ift_jax.pretrained import load_pretrained

VERBS = ["data", "train", "evaluate", "study", "generate", "export", "report"]


@pytest.fixture
def place(tmp_path, tiny_llama):
    return Workplace(tmp_path, tiny_llama)


def python(*arguments, cwd, **options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
        **options,
    )  # fmt: skip


# Help


SLOW_CHAT = """
import sys, time
from pathlib import Path
from ift_jax.commands import generate

class Slow:
    def stream(self, messages, **options):
        yield "first"
        end = time.monotonic() + 30
        while not Path("go").exists():
            if time.monotonic() > end:
                sys.exit(1)
            time.sleep(0.01)
        yield " second"

generate._chat(Slow(), {})
"""


def test_a_chat_prints_each_piece_when_it_is_made(tmp_path):
    """Through a pipe, where Python itself would wait for the end."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_CHAT], cwd=tmp_path, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as chat:  # fmt: skip
        chat.stdin.write(b"Hello\n")
        chat.stdin.close()
        assert chat.stdout.read(5) == b"first"
        (tmp_path / "go").touch()
        assert chat.stdout.read() == b" second\n"
    assert chat.returncode == 0


SHORT_CHAT = """
import io, sys
from ift_jax.commands import generate
from ift_jax.errors import InputError

class Terminal(io.StringIO):
    def isatty(self):
        return True

class Short:
    def stream(self, messages, **options):
        said = " ".join(turn["content"] for turn in messages)
        if len(said) > 12:
            raise InputError("too long")
        yield f"({said})"

sys.stdin = Terminal("one\\nlonger than that\\ntwo\\nthree\\n")
generate._chat(Short(), {})
"""


def test_on_a_terminal_a_message_that_is_too_long_costs_neither_turns_nor_the_chat(tmp_path):
    found = python("-c", SHORT_CHAT, cwd=tmp_path)
    assert found.returncode == 0
    answers = [line.partition("model> ")[2] for line in found.stdout.splitlines()]
    assert answers == ["(one)", "", "(two)", "(three)", ""]
    assert found.stderr.splitlines() == [
        "ift: too long; this message is left out",
        "ift: too long; the first 2 turns are left out",
        "ift: too long; the first 2 turns are left out",
    ]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_verb_the_verbs_are_listed(place, arguments):
    outcome = place.run(*arguments)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith("usage: ift VERB [--flags]; `ift VERB --help` lists its flags")
    assert [line.split()[0] for line in outcome.stdout.splitlines()[2:]] == VERBS


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("data", ["config", "preview", "tokens", "output"]),
        ("train", ["config", "workdir"]),
        ("study", ["config", "workdir"]),
        (
            "evaluate",
            ["config", "model", "split", "shots", "interpolate", "name", "output", "predictions"],
        ),
        (
            "generate",
            [
                "model",
                "prompt",
                "prompts",
                "output",
                "max_new_tokens",
                "temperature",
                "top_k",
                "top_p",
                "repetition_penalty",
                "stop",
                "seed",
                "fsdp",
                "tensor",
            ],
        ),
        ("export", ["workdir", "output", "step", "dtype", "interpolate"]),
        ("report", ["workdirs", "output", "figures"]),
    ],
)
def test_help_lists_the_flags_of_a_verb_with_their_meaning(place, verb, names):
    outcome = place.run(verb, "--help")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"ift {verb} ")
    for name in names:
        assert f"--{name}:" in outcome.stdout or f"--[no]{name}:" in outcome.stdout


# Processes


def test_python_m_ift_jax_is_ift_and_never_imports_torch(place, smollm2):
    """The quickstart as it stands, from another working directory, with torch installed."""
    check = (
        "import runpy, sys\n"
        "sys.argv = ['ift', 'data', '--config=quickstart', '--preview=2']\n"
        "try:\n    runpy.run_module('ift_jax', run_name='__main__')\n"
        "finally:\n    print('torch imported:', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    outcome = python("-c", check, cwd=place.path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == "torch imported: False\n"
    card, *examples = outcome.stdout.split("\n\n--- ")
    assert "task rating: 4800 records, 0 rejected" in card
    assert "answers 1: 160, 2: 160, 3: 160, 4: 160, 5: 160" in card
    assert len(examples) == 2
    for text in examples:
        assert "template 'Predict the rating'" in text
        assert text.rstrip().endswith("<|im_end|>⟧")
        assert text.count("⟦") == 1
        assert text.rstrip()[-len("⟦1<|im_end|>⟧") :][1] in "12345"


def test_no_verb_imports_torch_for_a_hugging_face_folder(place, tiny_llama):
    check = (
        "import sys\n"
        f"sys.argv = ['ift', 'generate', {f'--model={tiny_llama}'!r}, '--prompt=a',\n"
        "            '--max_new_tokens=2']\n"
        "from ift_jax.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch imported:', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    outcome = python("-c", check, cwd=place.path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == "torch imported: False\n"


def test_a_model_generates_over_several_devices_what_it_does_on_one(place, tiny_llama):
    prompts = ["Lamps?", "What is it?", "Who said so, and when?"]
    place.write_reviews([{"prompt": prompt} for prompt in prompts], "p.jsonl")
    arguments = ["-m", "ift_jax", "generate", f"--model={tiny_llama}", "--max_new_tokens=6"]
    arguments += ["--prompts=p.jsonl", "--output=g.jsonl", "--fsdp=2", "--tensor=2"]
    devices = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    outcome = subprocess.run(
        [sys.executable, *arguments], cwd=place.path, env=devices, capture_output=True, text=True,
    )  # fmt: skip
    assert (outcome.returncode, outcome.stderr) == (0, "")
    found = [json.loads(line) for line in (place.path / "g.jsonl").read_text().splitlines()]
    alone = load_pretrained(tiny_llama).generate(prompts, max_new_tokens=6)
    assert [line["completion"] for line in found] == alone
    said = place.refusal("generate", f"--model={tiny_llama}", "--prompt=x", "--tensor=7")
    assert said.startswith("--fsdp=1 --tensor=7: ")


def test_output_that_is_cut_off_by_its_reader_is_no_error(place):
    command = f"{sys.executable} -m ift_jax data --config=tiny.py --preview=24 --tokens | head -1"
    outcome = subprocess.run(
        ["bash", "-c", command], cwd=place.path, capture_output=True, text=True, check=False
    )
    assert outcome.stdout.startswith("task rating: 40 records")
    assert outcome.stderr == ""


# ift data


def test_data_prints_the_card_and_a_preview(place):
    outcome = place.data("--preview=2")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith("task rating: 40 records, 0 rejected, 0 duplicates")
    assert outcome.stdout.count("\n--- reviews.jsonl:") == 2
    assert outcome.stdout.count("⟦") == 2
    assert "\033[" not in outcome.stdout  # nobody watches


def test_data_shows_tokens_one_by_one(place):
    outcome = place.data("--preview=1", "--tokens")
    assert "⟦<|im_end|>⟧" in outcome.stdout
    assert outcome.stdout.count("⟦") == 2


def test_data_writes_the_card_and_what_was_rejected(place):
    place.write_reviews([*(review(n) for n in range(40)), review(40, star_rating=7)])
    assert place.data("--output=some/folder").status == 0
    folder = place.path / "some" / "folder"
    assert json.loads((folder / "card.json").read_text())["tasks"]["rating"]["records"] == 41
    [line] = (folder / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["origin"] == "reviews.jsonl:41"


def test_an_output_folder_that_cannot_be_made_is_named(place):
    said = place.refusal("data", "--config=tiny.py", "--output=reviews.jsonl/out")
    assert said.startswith("reviews.jsonl/out: ")


# Configs


def test_fields_are_overridden_from_the_command_line(place):
    place.write_reviews([review(n) for n in range(60, 90)], "more.jsonl")
    outcome = place.data("--config.data.path=more.jsonl", "--config.data.tasks[0].train_size=4")
    assert "task rating: 30 records" in outcome.stdout
    assert "train           4 examples" in outcome.stdout


def test_the_config_may_come_last_and_after_a_space(place):
    outcome = place.run("data", "--config.data.tasks[0].train_size=4", "--config", "tiny.py")
    assert "train           4 examples" in outcome.stdout


@pytest.mark.parametrize(
    "override",
    [
        "--config.evaluation.shots=3", "--config.evaluation.shots=0,3", "--config.data.pack=false",
        "--noconfig.data.pack", "--config.optimizer.peak_lr=1", "--config.train.num_epochs=2",
        "--config.data.tasks[0].metrics=accuracy", "--config.train.eval_metrics=loss,accuracy",
        '--config.train.eval_metrics=("loss","accuracy")',
    ],
)  # fmt: skip
def test_overrides_of_every_type_are_taken(place, override):
    outcome = place.data(override)
    assert (outcome.status, outcome.stderr) == (0, "")


@pytest.mark.parametrize("config", ["amazon_reviews", "configs/amazon_reviews.py"])
def test_a_config_of_ours_is_found_from_any_folder(place, tiny_llama, config):
    assert not (place.path / "configs").exists()
    assert (ROOT / "configs" / "amazon_reviews.py").exists()
    outcome = place.run(
        "data", f"--config={config}", f"--config.model.path={tiny_llama}",
        "--config.data.path=reviews.jsonl", "--config.data.tasks[0].train_size=5",
        "--config.data.tasks[0].validation_size=0", "--config.data.tasks[0].test_size=0",
        "--config.data.max_length=300",
    )  # fmt: skip
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "task rating: 40 records" in outcome.stdout


def test_a_config_takes_what_stands_behind_its_colon(place, tiny_llama):
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(30)]
    (place.path / "raschka_instructions").mkdir()
    file = place.path / "raschka_instructions" / "instruction-data.json"
    file.write_text(json.dumps(records))
    for config in ("data_sets:raschka_instructions", "configs/data_sets.py:raschka_instructions"):
        outcome = place.run(
            "data", f"--config={config}", f"--config.model.path={tiny_llama}",
            IFT_JAX_DATA=str(place.path),
        )  # fmt: skip
        assert (outcome.status, outcome.stderr) == (0, "")
        assert "task raschka: 30 records, 0 rejected" in outcome.stdout
    said = place.refusal("data", "--config=data_sets:raska_instructions")
    assert "no data set 'raska_instructions'; did you mean raschka_instructions?" in said
    assert "--config=data_sets:NAME: no data set is named; there are amazon_reviews, uci_se" in (
        place.refusal("data", "--config=data_sets")
    )


# The path from data to an exported model


def test_train_evaluate_generate_and_export_work_together(place, tiny_llama):
    trained = place.run(
        "train", "--config=tiny.py", "--workdir=run", "--config.evaluation.shots=0,1"
    )
    assert trained.status == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    run = place.path / "run"
    for name in ("config.json", "data/card.json", "data/rejected.jsonl", "metrics.jsonl",
                 "data/preview.jsonl", "tensorboard", "checkpoints/2", "results.json",
                 "report.html"):  # fmt: skip
        assert (run / name).exists(), name
    assert trained.stderr.splitlines()[-1] == "report: run/report.html"
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert {(r["model"], r["shots"]) for r in rows} >= {("base", 0), ("base", 1), ("tuned", 0)}
    assert all(
        {"model", "task", "split", "shots", "metric", "value", "count", "low", "high"} <= set(r)
        for r in rows
    )

    scored = place.run(
        "evaluate", "--config=tiny.py", "--model=run", "--output=scores.json",
        "--predictions=items.jsonl",
    )  # fmt: skip
    assert scored.status == 0, scored.stderr
    items = [json.loads(line) for line in (place.path / "items.jsonl").read_text().splitlines()]
    assert [item["ranked"] == item["reference"] for item in items].count(True) == sum(
        r["value"] * r["count"]
        for r in rows
        if (r["model"], r["metric"]) == ("tuned", "accuracy") and "class" not in r
    )
    written = json.loads((place.path / "scores.json").read_text())
    chosen = json.loads((run / "results.json").read_text())["chosen"]
    assert (written["split"], written["chosen"]) == ("test", chosen)
    assert "choose between models by --split=validation" in scored.stderr
    again = written["rows"]
    assert [r for r in again if r["model"] == "tuned"] == [r for r in rows if r["model"] == "tuned"]

    # The sum of the answers' log-likelihoods in validation, from the base to the tuned model.
    sums = {}
    for model, share in ((str(tiny_llama), 1.0), ("run", 0.5), ("run", 1.0)):
        scored = place.run(
            "evaluate", "--config=tiny.py", f"--model={model}", "--output=v.json",
            "--predictions=v.jsonl", "--split=validation", "--shots=1,0", f"--interpolate={share}",
        )  # fmt: skip
        assert scored.status == 0, scored.stderr
        assert "--split=validation" not in scored.stderr
        written = json.loads((place.path / "v.json").read_text())
        assert {row["split"] for row in written["rows"]} == {written["split"]} == {"validation"}
        name = "tuned" if model == "run" else "base"
        rows = [row for row in written["rows"] if row["model"] == name]
        assert {row["shots"] for row in rows} == {0, 1}
        assert {row.get("interpolation", 1.0) for row in rows} == {share}
        found = read_lines(place.path / "v.jsonl")
        for shots in (0, 1):
            own = [line.prediction.log_likelihood for line in found if line.shots == shots]
            sums.setdefault(shots, []).append(sum(own))
    for base, half, tuned in sums.values():
        assert half == pytest.approx((base + tuned) / 2, abs=0.1 * abs(tuned - base))

    exported = place.run("export", "--workdir=run", "--output=out")
    assert exported.status == 0, exported.stderr
    assert exported.stdout == "wrote out\n"
    assert "out: already exists" in place.refusal("export", "--workdir=run", "--output=out")
    assert "--step=nine: expected best, latest or one of [2]" in place.refusal(
        "export", "--workdir=run", "--output=new", "--step=nine"
    )

    assert "--interpolate: expected 0 (base) to 1 (tuned), got 2.0" in place.refusal(
        "export", "--workdir=run", "--output=new", "--interpolate=2"
    )
    assert "--interpolate=0.5: out is no workdir, so it has no base" in place.refusal(
        "evaluate", "--config=tiny.py", "--model=out", "--output=x.json", "--interpolate=0.5"
    )

    place.write_reviews([{"prompt": "Häuser?", "id": 7}], "p.jsonl")
    answers = []
    for model in ("run", "out"):
        outcome = place.run(
            "generate", f"--model={model}", "--prompts=p.jsonl", "--output=g.jsonl",
            "--max_new_tokens=5",
        )  # fmt: skip
        assert (outcome.status, outcome.stderr) == (0, "")
        [line] = (place.path / "g.jsonl").read_text().splitlines()
        answers.append(json.loads(line))
        assert answers[-1] == {"prompt": "Häuser?", "id": 7, "completion": answers[0]["completion"]}

    turns = ["Hello", "And then?"]
    chat = place.run(
        "generate", "--model=out", "--max_new_tokens=4", stdin="\n".join([*turns, "", ""])
    )
    assert (chat.status, chat.stderr) == (0, "")
    # Through a pipe, only the answers are printed; each is to all that was said before.
    model, messages, expected = load_pretrained(place.path / "out"), [], ""
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        answer = "".join(model.stream(messages, max_new_tokens=4))
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert chat.stdout == expected

    # Beyond the context a chat goes on without its first turns, and says so.
    turns = [letter * 400 for letter in "abc"]
    chat = place.run("generate", "--model=out", "--max_new_tokens=4", stdin="\n".join(turns))
    messages, answers = [], []
    for number, turn in enumerate(turns):
        messages = messages[2:] if number == 2 else messages
        messages.append({"role": "user", "content": turn})
        answers.append("".join(model.stream(messages, max_new_tokens=4)))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert chat.stdout == "".join(f"{answer}\n" for answer in answers)
    assert "exceed the context of 1024; the first 2 turns are left out\n" in chat.stderr

    (place.path / "old.jsonl").write_text("kept")
    for stop, prompts in (("a<|im_end|>", "p.jsonl"), ("b", "old.jsonl")):
        said = place.refusal("generate", "--model=out", f"--prompts={prompts}", f"--stop={stop}",
                             "--output=old.jsonl")  # fmt: skip
        assert ("holds the special token" if stop[1:] else "is the file of --prompts, too") in said
        assert (place.path / "old.jsonl").read_text() == "kept"

    # A program that sends what is too long by itself gets no answer to another question.
    turns = ["Hello", "b" * 1100, "And then?"]
    again = place.run("generate", "--model=out", "--max_new_tokens=4", stdin="\n".join(turns))
    assert (again.status, again.stdout) == (1, expected.splitlines()[0] + "\n")
    assert "exceed the context of 1024" in again.stderr

    said = place.refusal("train", "--config=tiny.py", "--workdir=run", "--config.train.num_steps=3")
    assert said.startswith("run: holds a run with another config; config.")
