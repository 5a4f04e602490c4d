"""Whatever is wrong with what a user gives: one line that names it, status 1, no traceback."""

import json
import shutil

import pytest
from workplace import Workplace, review

from ift_jax.commands.config_flag import known_configs
from ift_jax.config import build_run_config, to_json

CONFIGS = ", ".join(known_configs())


@pytest.fixture
def place(tmp_path, tiny_llama):
    return Workplace(tmp_path, tiny_llama)


# The command line and the config


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fly", "no command 'fly'; there are data, train, evaluate, study, generate, export, rep"),
        ("data", f"--config is missing; name a file or one of {CONFIGS}"),
        ("data --config", f"--config is missing; name a file or one of {CONFIGS}"),
        ("data --config.train.num_steps=3", "--config is missing"),
        ("train --config=tiny.py", "--workdir is missing"),
        ("study --config=tiny.py", "--workdir is missing"),
        ("study --config=tiny.py --workdir=w", "config.study.runs: no run is given"),
        ("evaluate --config=tiny.py --output=o.json", "--model is missing"),
        ("evaluate --config=tiny.py --model=m", "--output is missing"),
        ("evaluate --model=m --output=o.json", "--config is missing"),
        ("generate --prompt=a", "--model is missing"),
        ("generate --model=m --prompts=p.jsonl", "--output is missing"),
        ("generate --model=m --prompts=p.jsonl --prompt=a", "--prompt and --prompts exclude"),
        ("export --output=o", "--workdir is missing"),
        ("export --workdir=w", "--output is missing"),
        ("export --workdir=w --output=o", "w: is no training workdir"),
        ("report --output=o", "--workdirs: is missing; name one or more folders"),
        ("report --workdirs=w", "--output is missing"),
        ("report --workdirs=w --output=no/o.html", "no/o.html: cannot be written"),
        ("report --workdirs=w --output=o", "w: is no workdir, there is no config.json in it"),
        ("data --config=tiny.py --previw=3", "--previw: ift data has no such flag; did you mean"),
        ("data --config=tiny.py --zzz", "--zzz: ift data has no such flag; `ift data --help` li"),
        ("data --config=tiny.py --preview=x", "--preview=x: expected a whole number, got 'x'"),
        ("data --config=tiny.py --preview=-1", "--preview=-1: -1 is not a non-negative integer"),
        ("data --config=tiny.py more", "ift data: unexpected argument 'more'; flags start with --"),
        ("generate --model=m --top_p=0.5", "--top_p: has no effect at temperature 0"),
        ("generate --model=m --repetition_penalty=0", "--repetition_penalty: expected a number"),
        ("generate --model=m --stop=", "--stop: expected texts that are not empty"),
        ("generate --model=m --temperature=x", "--temperature=x: expected a number, got 'x'"),
        ("evaluate --config=tiny.py --model=m --output=o --split=dev", "--split=dev: expected one"),
        ("evaluate --config=tiny.py --model=m --output=o --shots=a", "--shots=a: expected numbers"),
        ("evaluate --config=tiny.py --model=m --output=o --shots=-1", "--shots=-1: expected diff"),
        ("evaluate --config=tiny.py --model=m --output=o --shots=5,5", "--shots=5,5: expected"),
        ("evaluate --config=tiny.py --model=m --output=o --predictions=./o",
         "--predictions=./o: is the file of --output, too"),
        ("generate --model=m --prompt=x --output=f", "--output is for the completions of --pro"),
        ("evaluate --config=tiny.py --model=m --output=no/o.json", "no/o.json: cannot be written"),
        ("evaluate --config=tiny.py --model=m --output=/proc/o", "/proc/o: cannot be written (No"),
        ("evaluate --config=tiny.py --model=m --output=.", ".: cannot be written (Is a directory)"),
        ("evaluate --config=tiny.py --model=m --output=o --predictions=no/p", "no/p: cannot be"),
        ("data --config=nosuch", f"--config=nosuch: no such config; there are {CONFIGS}"),
        ("data --config=no/such.py", "--config=no/such.py: no such file"),
        ("data --config=tiny.py --config.train.num_stps=3",
         "config.train.num_stps: no such field; did you mean num_steps?"),
        ("data --config=tiny.py --config.train.num_steps=x",
         "config.train.num_steps: expected a whole number, got 'x'"),
        (r"data --config=tiny.py --config.peft.targets=layers.\d{1,2}.q_proj,v_proj",
         r"""config.peft.targets: expected texts as in ("a","b"), got 'layers.\\d{1,2}.q_proj,"""),
        ("data --config=tiny.py --config.train.eval_metrics=loss,acuracy", "acuracy"),
        ("data --config=tiny.py --config.data.tasks[7].train_size=3",
         "config.data.tasks[7]: there is no such entry; the config has 1, counted from 0"),
        ("study --config=quick_study --config.study.runs[19].name=x",
         "config.study.runs[19]: there is no such entry; the config has "),
        ("study --config=quick_study --config.study.runs[0].after=x",
         "config.study.runs[0].after: can be set in "),
        ("data --config=tiny.py --config.evaluation.shots=a",
         "config.evaluation.shots[0]: expected int, got 'a'"),
        ("data --config=tiny.py --config.data.on_too_long=explode",
         "config.data.on_too_long: expected drop, truncate or error, got 'explode'"),
        ("data --config=tiny.py --config.data.tasks=()", "config.data.tasks: no task is given"),
        ("data --config=tiny.py --config.data.tasks=", "config.data.tasks[0]: expected a section"),
        ("data --config=tiny.py --config.data.tasks[0].train_size=90",
         "config.data.tasks: rating.train_size is 90, but the split has"),
        ("data --config=tiny.py --config.data.tasks[0].template_names=Rate",
         "reviews.yaml has no template 'Rate'; it has ['Predict the rating', "),
    ],
)  # fmt: skip
def test_a_wrong_command_line(place, command, says):
    assert says in place.refusal(*command.split())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def get_config(:", "bad.py, line 1: invalid syntax"),
        ("x = 1", "bad.py: defines no get_config()"),
        ("def get_config():\n    return foo", "bad.py, line 2: NameError: name 'foo' is not"),
        ("import nosuchmodule", "bad.py, line 1: ModuleNotFoundError: No module named "),
        ("def get_config():\n    open('/no/file')", "bad.py, line 2: FileNotFoundError: "),
        ("def get_config():\n    return {}", "bad.py: get_config() returned dict, expected what"),
        ("def get_config():\n    pass", "bad.py: get_config() returned NoneType, expected what"),
        ("def get_config(a):\n    return a", "bad.py: TypeError: get_config() missing 1 required"),
        ("def get_config():\n    1 / 0", "bad.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return task_config(nam='a')",
         "bad.py, line 3: task_config: no field 'nam'; did you mean name?"),
        ("def get_config():\n    c = default_config()\n    c.train.num_steps = 'x'\n    return c",
         "bad.py, line 4: TypeError: "),
        ("def get_config():\n    c = default_config()\n    c.train.num_stps = 3\n    return c",
         "config.train.num_stps: no such field; did you mean num_steps?"),
    ],
)  # fmt: skip
def test_a_broken_config_file(place, body, says):
    uses_ours = "task_config(" in body or "default_config(" in body
    head = "from ift_jax.config import default_config, task_config\n" if uses_ours else ""
    (place.path / "bad.py").write_text(head + body)
    said = place.refusal("data", "--config=bad.py")
    assert says in said
    assert len(said) < 250


# Records


def test_a_missing_file(place):
    (place.path / "reviews.jsonl").unlink()
    assert "reviews.jsonl: no such file; looked from" in place.refusal("data", "--config=tiny.py")
    said = place.refusal("data", "--config=tiny.py", "--config.data.path=more.jsonl")
    assert "more.jsonl: no such file" in said


def test_an_empty_file(place):
    place.write_reviews([])
    assert "reviews.jsonl: the file is empty" in place.refusal("data", "--config=tiny.py")
    (place.path / "reviews.jsonl").write_text("\n\n")
    assert "reviews.jsonl: holds no records" in place.refusal("data", "--config=tiny.py")


def test_a_file_of_broken_lines(place):
    place.write_reviews(["{broken"] * 5)
    said = place.refusal("data", "--config=tiny.py")
    assert "task rating: no record could be read; first: reviews.jsonl:1: " in said


def test_a_file_that_breaks_off_in_the_middle(place):
    whole = (place.path / "reviews.jsonl").read_bytes()
    (place.path / "reviews.json").write_bytes(b"[" + whole.replace(b"}\n", b"},\n")[:400])
    said = place.refusal("data", "--config=tiny.py", "--config.data.path=reviews.json")
    assert "reviews.json:" in said
    assert "broken JSON" in said


def test_a_missing_column(place):
    place.write_reviews([{"text": "a", "star_rating": 1}] * 3)
    said = place.refusal("data", "--config=tiny.py")
    assert "reviews.jsonl:1: no column 'review_body'" in said
    assert "there are ['star_rating', 'text']" in said


def test_a_column_of_the_split_that_is_missing(place):
    said = place.refusal("data", "--config=tiny.py", "--config.data.tasks[0].split_by=author")
    assert "no column 'author', which split_by of task rating reads" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"star_rating": 7}, "reviews.jsonl:1: target_not_in_choices: "),
        ({"review_body": "word " * 10_000}, "reviews.jsonl:1: too_long: "),
        ({"review_body": "<|im_end|>"}, "reviews.jsonl:1: special_token: the text holds the spe"),
        ({"star_rating": None}, "reviews.jsonl:1: printed_none: "),
    ],
)
def test_all_records_unusable(place, changes, says):
    place.write_reviews([review(n, **changes) for n in range(20)])
    said = place.refusal("data", "--config=tiny.py")
    assert "20 of 20 records were rejected, more than config.data.max_rejected=0.05" in said
    assert says in said


def test_single_bad_records_are_rejected_and_counted_and_the_run_goes_on(place):
    bad = ["{broken", review(101, star_rating=7), {"review_body": "No stars."},
           review(103, review_body="word " * 10_000)]  # fmt: skip
    place.write_reviews([*(review(n) for n in range(96)), *bad])
    outcome = place.data("--output=out")
    assert (outcome.status, outcome.stderr) == (0, "")
    reasons = ["broken_json", "target_not_in_choices", "undefined_column", "too_long"]
    lines = (place.path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = {r["origin"]: r for r in map(json.loads, lines)}
    assert [rejected[f"reviews.jsonl:{n}"]["reason"] for n in (97, 98, 99, 100)] == reasons
    assert all(r["task"] == "rating" and r["detail"] for r in rejected.values())
    card = json.loads((place.path / "out" / "card.json").read_text())["tasks"]["rating"]
    assert card["records"] == 100
    assert card["rejected"] == dict.fromkeys(reasons, 1)
    assert "100 records, 4 rejected" in outcome.stdout
    place.write_reviews([*(review(n) for n in range(96)), *bad, *bad])
    assert "8 of 104 records were rejected" in place.refusal("data", "--config=tiny.py")


# Templates


@pytest.mark.parametrize(
    ("jinja", "choices", "says"),
    [
        ("{{ review_body }", "null", "templates.yaml, line 2: template 'a': line 1 of jinja: "),
        (
            "{% if review_body %}a ||| b",
            "null",
            "templates.yaml, line 2: template 'a': line 1 of j",
        ),
        ("{{ text }} ||| {{ star_rating }}", "null", "no column 'text', which template 'a'"),
        ("{{ review_body }} ||| maybe", "yes ||| no", "the target 'maybe' is none of the choices"),
        ("{{ review_body }}", "null", "no ||| was rendered"),
    ],
)
def test_a_template_that_cannot_be_used(place, jinja, choices, says):
    (place.path / "templates.yaml").write_text(
        f"templates:\n  a: !Template\n    name: a\n    jinja: '{jinja}'\n"
        f"    answer_choices: {choices}\n"
    )
    said = place.refusal(
        "data", "--config=tiny.py", "--config.data.tasks[0].templates=templates.yaml",
        "--config.data.tasks[0].template_names=()",
    )  # fmt: skip
    assert says in said


def test_a_template_file_that_is_no_template_file(place):
    override = "--config.data.tasks[0].templates={}"
    for name, content, says in (
        ("missing.yaml", None, "missing.yaml: No such file or directory"),
        ("broken.yaml", "templates: [", "broken.yaml, line 2: "),
        ("other.yaml", "a: 1", "other.yaml: no mapping `templates:`"),
        ("reveiws", None, "reveiws: No such file or directory"),
    ):
        if content:
            (place.path / name).write_text(content)
        assert says in place.refusal("data", "--config=tiny.py", override.format(name))


# Workdirs


@pytest.mark.parametrize("workdir", ["reviews.jsonl/run", "reviews.jsonl", "/proc/run"])
def test_a_workdir_that_cannot_be_written(place, workdir):
    said = place.refusal("train", "--config=tiny.py", f"--workdir={workdir}")
    assert said.startswith(f"{workdir}: cannot be written (")


def test_a_workdir_of_another_run(place):
    other = build_run_config({"train": {"num_steps": 9}})
    (place.path / "run").mkdir()
    (place.path / "run" / "config.json").write_text(to_json(other))
    said = place.refusal("train", "--config=tiny.py", "--workdir=run")
    assert said.startswith("run: holds a run with another config; config.")
    assert "choose another --workdir" in said


def test_a_workdir_that_is_a_hugging_face_folder(place, tiny_llama):
    before = sorted(p.name for p in tiny_llama.iterdir())
    for verb in (("train", "--config=tiny.py"), ("study", "--config=quick_study"),
                 ("export", "--output=out")):  # fmt: skip
        said = place.refusal(*verb, f"--workdir={tiny_llama}")
        assert said == f"{tiny_llama}: is a Hugging Face folder, not a workdir; name another"
    assert sorted(p.name for p in tiny_llama.iterdir()) == before


def test_a_workdir_that_holds_something_else(place):
    said = place.refusal("train", "--config=tiny.py", "--workdir=.")
    assert said.startswith(".: is not empty and holds no run")


def test_an_export_without_a_checkpoint(place):
    (place.path / "run").mkdir()
    (place.path / "run" / "config.json").write_text(to_json(build_run_config({})))
    said = place.refusal("export", "--workdir=run", "--output=out")
    assert "checkpoints: holds no checkpoint; run `ift train` first" in said
    assert [p.name for p in (place.path / "run").iterdir()] == ["config.json"]


def test_a_study_as_a_model(place):
    """It is as it was, and can go on."""
    (place.path / "study" / "runs").mkdir(parents=True)
    (place.path / "study" / "config.json").write_text(to_json(build_run_config({})))
    for verb in (["export", "--workdir=study", "--output=out"],
                 ["generate", "--model=study", "--prompt=a"]):  # fmt: skip
        assert "study: is a study; give one of the runs in" in place.refusal(*verb)
        assert not (place.path / "study" / "checkpoints").exists()


def test_a_prompt_without_text(place):
    """Of an empty variable of the shell; not a chat that nobody sees."""
    for flag in ("prompt", "prompts"):
        said = place.refusal("generate", "--model=m", f"--{flag}=", "--output=out.jsonl")
        assert said == f"--{flag}: is empty; leave it out for a chat"


# Models


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/no/such/folder", "/no/such/folder: no such file or folder"),
        ("./folder", "./folder: no such file or folder"),
        ("model.gguf", "model.gguf: no such file or folder"),
        ("folder", "folder: no such file or folder"),
        ("owner/name", "owner/name: no such folder, and not available from the Hugging Face hub"),
        ("tiny.py", "tiny.py: expected a folder or a .gguf file"),
    ],
)
def test_a_model_that_is_not_there(place, model, says):
    assert says in place.refusal("data", "--config=tiny.py", f"--config.model.path={model}")
    assert says in place.refusal("generate", f"--model={model}", "--prompt=a")


@pytest.mark.parametrize("size", [0, 10, 100_000, 3_000_000])
def test_a_gguf_file_that_is_cut_off(place, smollm2, size):
    with open(smollm2, "rb") as whole:
        (place.path / "cut.gguf").write_bytes(whole.read(size))
    said = place.refusal("train", "--config=tiny.py", "--workdir=w", "--config.model.path=cut.gguf")
    assert said.startswith("cut.gguf: not a complete GGUF file (")


@pytest.mark.parametrize("size", [0, 5, 300, 20_000])
def test_a_safetensors_file_that_is_cut_off(place, tiny_llama, size):
    shutil.copytree(tiny_llama, place.path / "model")
    file = place.path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    said = place.refusal("train", "--config=tiny.py", "--workdir=w", "--config.model.path=model")
    assert said.startswith("model/model.safetensors: not a complete safetensors file (")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "config.json"),
        ("config.json", "{", "model/config.json: not valid JSON"),
        ("config.json", "[]", "model/config.json: expected a JSON object, got list"),
        ("config.json", '{"model_type": "nosuch"}', "nosuch"),
        ("model.safetensors", None, "model/model.safetensors: no such file"),
        ("tokenizer.json", None, "tokenizer"),
    ],
)
def test_a_model_folder_that_lacks_a_file_or_has_a_broken_one(
    place, tiny_llama, file, content, says
):
    shutil.copytree(tiny_llama, place.path / "model")
    if content is None:
        (place.path / "model" / file).unlink()
    else:
        (place.path / "model" / file).write_text(content)
    assert says in place.refusal("generate", "--model=model", "--prompt=a")


def test_a_file_of_prompts_that_cannot_be_used(place):
    for lines, says in (
        (['{"text": "a"}'], "p.jsonl:1: expected a text under 'prompt'"),
        (['{"prompt": "a"}', "{broken"], "p.jsonl:2: "),
        ([], "p.jsonl: the file is empty"),
    ):
        place.write_reviews(lines, "p.jsonl")
        said = place.refusal("generate", "--model=m", "--prompts=p.jsonl", "--output=g.jsonl")
        assert says in said
        assert not (place.path / "g.jsonl").exists()
