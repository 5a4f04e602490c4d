"""Our models in the evaluation harness, against its own Hugging Face model on the same tasks."""

import json
import subprocess
import sys

import numpy as np
import pytest
from torch_reference import save_variant

from ift_jax.errors import InputError
from ift_jax.evaluation import lm_eval as command
from ift_jax.evaluation.sampling import Sampling

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from ift_jax.evaluation import lm_eval_model as ours

RECORDS = [
    {
        "question": f"{'Well, ' * (n % 5)}is {n} plus {n} {2 * n}?",
        "choices": ["yes", "no", "only on Sundays"][: 2 + n % 2],
        "answer": n % 2,
        "text": f"Number {n}. " * (1 + n % 7),
    }
    for n in range(10)
]
TASKS = {
    "ranked": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
""",
    "generated": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["e", "\\n\\n"]
  max_gen_toks: 20
  repetition_penalty: 1.2
metric_list:
  - metric: exact_match
""",
}
PLAIN = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 20
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its context is shorter than the longest rolling text."""
    path = tmp_path_factory.mktemp("lm_eval") / "model"
    return save_variant(path, max_position_embeddings=72, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    (path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for name, text in {**TASKS, "plain": PLAIN}.items():
        (path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
            f"{path / 'data.jsonl'}\ntest_split: test\nfewshot_split: test\n{text}"
        )
    return path


@pytest.fixture(scope="module", autouse=True)
def data_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(model, arguments, tasks, names, **options):
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=list(names), bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), **options,
    )  # fmt: skip
    answers = {
        name: [s["resps"] for s in sorted(rows, key=lambda s: s["doc_id"])]
        for name, rows in found["samples"].items()
    }
    return answers, found["results"]


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 1}, {"apply_chat_template": True}])
def test_scores_texts_and_metrics_are_those_of_lm_evals_hugging_face_model(folder, tasks, options):
    names = TASKS if not options else ("ranked", "generated")
    reference = {"pretrained": str(folder), "dtype": "float32", "max_length": 72}
    expected, expected_results = run("hf", reference, tasks, names, device="cpu", **options)
    found, results = run("ift_jax", {"path": str(folder)}, tasks, names, **options)
    for mine, theirs in zip(found["ranked"], expected["ranked"], strict=True):
        for [(score, greedy)], [(other, also)] in zip(mine, theirs, strict=True):
            assert score == pytest.approx(other, abs=1e-3)
            assert greedy == also
    if "rolling" in names:
        np.testing.assert_allclose(
            np.array(found["rolling"], float), np.array(expected["rolling"], float), atol=1e-3
        )
    assert found["generated"] == expected["generated"]
    assert len({str(text) for text in found["generated"]}) > 1
    for name in names:
        for metric in ("acc,none", "acc_norm,none", "byte_perplexity,none", "exact_match,none"):
            assert results[name].get(metric) == pytest.approx(expected_results[name].get(metric))


def test_a_continuation_is_greedy_where_each_of_its_tokens_is_the_most_likely(folder):
    model = ours.JaxModel(path=str(folder))
    context, best = [65, 66, 67], []
    for _ in range(2):
        best.append(int(np.argmax(model.language_model.logits([[*context, *best]])[0, -1])))
    other = (best[1] + 1) % 258
    pairs = [(context, best), (context, [best[0], other]), (context, [other, best[1]])]
    found = model._loglikelihood_tokens([(("c", str(n)), *pair) for n, pair in enumerate(pairs)])
    assert [greedy for _, greedy in found] == [True, False, False]


@pytest.mark.slow
def test_the_command_hands_over_to_lm_eval(folder, tasks, tmp_path):
    outcome = subprocess.run(
        [sys.executable, "-m", "ift_jax.evaluation.lm_eval", "--model_args", f"path={folder}",
         "--tasks", "ranked,generated", "--include_path", str(tasks),
         "--output_path", str(tmp_path / "out"), "--limit", "3"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "ift_jax ({'path':" in outcome.stdout
    [file] = (tmp_path / "out").rglob("results_*.json")
    by_command = json.loads(file.read_text())["results"]
    _, results = run("ift_jax", {"path": str(folder)}, tasks, ("ranked", "generated"), limit=3)
    assert set(by_command) == {"ranked", "generated"}
    for name, found in results.items():
        metrics = {k: x for k, x in found.items() if k in ("acc,none", "exact_match,none")}
        assert metrics
        assert {key: by_command[name][key] for key in metrics} == pytest.approx(metrics)
    assert "exact_match,none" in by_command["generated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "path is missing"),
        ({"path": "x", "pretrained": "y"}, "ift_jax has no argument 'pretrained'; there are path"),
        ({"path": "/no/such/model"}, "/no/such/model: no such file or folder"),
    ],
)
def test_arguments_that_mean_nothing_here_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ours.JaxModel(**arguments)


def test_a_setting_of_generation_that_we_do_not_have_is_refused():
    with pytest.raises(InputError, match="generate with 'num_beams'"):
        ours._sampling({"until": [], "num_beams": 4}, 0, {})
    assert ours._sampling({"until": [], "num_beams": 1}, 0, {}) == Sampling(max_new_tokens=256)


def test_settings_of_all_requests_are_read_before_any_is_computed(folder, monkeypatch):
    model = ours.JaxModel(path=str(folder))
    monkeypatch.setattr(model, "_generate", lambda *_: pytest.fail("generated"))
    asked = [Instance("generate_until", {}, ("a", {"until": ["b"], **more}), 0)
             for more in ({}, {"num_beams": 4})]  # fmt: skip
    with pytest.raises(InputError, match="generate with 'num_beams'"):
        model.generate_until(asked)


def test_the_settings_of_a_task_are_those_of_generation():
    filters = {"top_k": 5, "top_p": 0.9}
    sampled = {"until": "x", "do_sample": True, "repetition_penalty": 1.2, **filters}
    expected = Sampling(
        max_new_tokens=256, stop="x", seed=3, temperature=0.5, repetition_penalty=1.2, **filters
    )
    assert ours._sampling({**sampled, "temperature": 0.5}, 3, {}) == expected
    assert ours._sampling(sampled, 3, {}).temperature == 1
    greedy = {"until": ["\n", ""], "max_gen_toks": 9, "do_sample": False, **filters}
    assert ours._sampling(greedy, 0, {}) == Sampling(max_new_tokens=9, stop=["\n"])


def test_what_a_task_leaves_open_is_as_the_models_own_file_has_it():
    own = {"top_k": 7, "top_p": None, "temperature": 0.6, "repetition_penalty": 1.1}
    sampled = {"until": [], "do_sample": True}
    expected = Sampling(max_new_tokens=256, temperature=0.6, top_k=7, repetition_penalty=1.1)
    assert ours._sampling(sampled, 0, own) == expected
    assert ours._sampling({**sampled, "top_k": 3}, 0, own).top_k == 3
    assert ours._sampling(sampled, 0, {}).top_k == 50  # transformers' default
    greedy = ours._sampling({"until": []}, 0, own)
    assert greedy == Sampling(max_new_tokens=256, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def peculiar(tmp_path_factory):
    """Its answers begin with a blank, a system turn is refused, and repetitions are punished."""
    path = tmp_path_factory.mktemp("lm_eval") / "peculiar"
    save_variant(path, max_position_embeddings=72)
    (path / "generation_config.json").write_text('{"eos_token_id": 1, "repetition_penalty": 1.4}')
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ '<|im_start|>' + m['role'] }}{% if m['role'] == 'assistant' %}{{ ' ' }}"
        "{% endif %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    return path


def test_settings_of_the_model_and_a_template_without_system_turns_are_as_in_lm_eval(
    peculiar, tasks
):
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    reference = {"pretrained": str(peculiar), "dtype": "float32", "max_length": 72}
    expected, _ = run("hf", reference, tasks, ["plain"], device="cpu", **options)
    found, _ = run("ift_jax", {"path": str(peculiar)}, tasks, ["plain"], **options)
    assert found["plain"] == expected["plain"]
    assert len({str(text) for text in found["plain"]}) > 1


def test_a_chat_template_that_refuses_the_turns_themselves_is_said(peculiar):
    model = ours.JaxModel(path=str(peculiar))
    model.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(InputError, match="the chat template refuses a prompt: never"):
        model.apply_chat_template([{"role": "user", "content": "a"}])
    with pytest.raises(InputError, match="the chat template refuses a prompt: never"):
        model.apply_chat_template([{"role": r, "content": "a"} for r in ("system", "user")])


def test_generated_blanks_that_a_chat_would_open_a_turn_with_stay(peculiar):
    model = ours.JaxModel(path=str(peculiar))
    assert model.language_model.chat.opening == " "
    ids = model.tokenizer.encode("    return x", add_special_tokens=False)
    assert model.language_model.chat.decode(ids) == "   return x"
    assert model.chat.decode(ids) == "    return x"


def test_requests_that_are_cut_are_counted(folder, caplog):
    model = ours.JaxModel(path=str(folder))
    asked = [Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8}), 0)
             for text in ("a" * 64, "b" * 65, "c" * 90)]  # fmt: skip
    model.generate_until(asked)
    said = (
        "2 of 3 requests are longer than the 64 tokens that there is room for, the longest has 90"
    )
    assert said in caplog.text
    caplog.clear()
    model._loglikelihood_tokens([(("c", "d"), [5] * 71, [6, 7]), (("c", "d"), [5] * 71, [6])])
    assert "1 of 2 requests are longer than the 72 tokens" not in caplog.text
    model._loglikelihood_tokens([(("c", "d"), [5] * 72, [6, 7]), (("c", "d"), [5] * 72, [6])])
    assert "1 of 2 requests are longer than the 72 tokens" in caplog.text


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "ift_jax.evaluation.lm_eval_model", raising=False)
    with pytest.raises(SystemExit, match=r"lm_eval: .*pip install \"ift_jax\[eval\]\""):
        command.main(["--tasks", "ranked"])
