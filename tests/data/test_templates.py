import math
import random
import tracemalloc
from pathlib import Path

import pytest

import ift_jax
from ift_jax.data.templates import (
    Rendered,
    Template,
    TemplateRejection,
    lint,
    load_templates,
)
from ift_jax.errors import InputError

REVIEWS = Path(ift_jax.__file__).parent / "templates" / "reviews.yaml"
REVIEW = {
    "product_title": "USB cable",
    "star_rating": 4,
    "review_headline": "Does its job",
    "review_body": "Charges quickly, looks cheap.",
}


# --- compatible mode: the table of reference/templates.md -------------------------------------


@pytest.mark.parametrize(
    ("jinja", "record", "parts"),
    [
        ("{{ a }} ||| {{ b }}", {"a": "x", "b": "y"}, ["x", "y"]),
        ("no separator", {}, ["no separator"]),
        (" \n ", {}, [""]),
        ("{% if a %}p ||| t{% endif %}", {"a": 0}, [""]),
        ("prompt ||| {% if a %}t{% endif %}", {"a": 0}, ["prompt", ""]),
        ("a ||| b ||| c", {}, ["a", "b", "c"]),
        ("{{ a }} {{ b }} {{ c }}", {"a": None, "b": True, "c": 1.0}, ["None True 1.0"]),
        ("{{ a[0] }} ||| y", {"a": ["p ||| q"]}, ["p", "q", "y"]),
        ("{{ a.b }} ||| y", {"a": {"b": "p ||| q"}}, ["p", "q", "y"]),
        ("{{ a }} ||| y", {"a": "p||||q"}, ["p||||q", "y"]),
        ("{{ a }}", {"a": "x" * 2053}, ["x" * 2053]),
        ("{{ a }}", {"a": "x" * 2054}, ["x" * 2045 + "..."]),
        ("{{ a }}", {"a": "word " * 500}, [("word " * 409).strip() + "..."]),
        ("{{ a + b }}", {"a": "x" * 3000, "b": "y" * 3000}, ["x" * 3000 + "y" * 2045 + "..."]),
        ("{# ||| #}a", {}, ["a"]),
        ('a{{"|||"}}b', {}, ["a", "b"]),
        ("{{ a }}", {"a": "{{ b }} <i>&</i>"}, ["{{ b }} <i>&</i>"]),
        ("\u00a0a\u00a0 ||| \u200bb\u200b", {}, ["a", "\u200bb\u200b"]),
        ("{{ a }}x", {"a": "1\r\n2"}, ["1\r\n2x"]),
        ("1\r\n2\n", {}, ["1\n2"]),
        ("{{ missing }} ||| a", {}, ["", "a"]),
    ],
)  # fmt: skip
def test_apply_gives_the_parts_of_the_table(jinja, record, parts):
    assert Template("t", jinja).apply(record) == parts


@pytest.mark.parametrize(
    ("answer_choices", "jinja", "parts"),
    [
        ("no ||| yes", "{{ answer_choices[1] }}", ["yes"]),
        ("no ||| yes", "{{ answer_choices[2] }}|", ["|"]),
        ("no ||| yes", "{{ answer_choices[-1] }}", ["yes"]),
        ("", "{{ answer_choices }}", ["['']"]),
        ("a |||", "{{ answer_choices }}", ["['a', '']"]),
        (None, "{{ answer_choices }}", ["None"]),
        ("{{ s }} ||| b", "{{ answer_choices }}", ["['x', 'b']"]),
    ],
)
def test_answer_choices_are_bound_as_a_list(answer_choices, jinja, parts):
    assert Template("t", jinja, answer_choices).apply({"s": "x"}) == parts


def test_a_template_that_changes_its_choices_changes_them_for_one_record():
    jinja = "{% if answer_choices.append('c') %}{% endif %}{{ answer_choices | length }} ||| a"
    template = Template("t", jinja, "a ||| b")
    assert [template.apply({"n": n}) for n in range(3)] == [["3", "a"]] * 3
    assert {r.answer_choices for r in template.render_batch([{}, {}])} == {("a", "b", "c")}


@pytest.mark.parametrize(
    ("jinja", "record"),
    [
        ("{{ a -}} ||| b", {"a": 1}),
        ("{{ missing.attribute }}", {}),
        ("a", {"answer_choices": []}),
        ("{{ a", {"a": 1}),
        ("{{ with-dash }}", {"with-dash": "v"}),
    ],
)
def test_apply_fails_where_the_reference_does(jinja, record):
    with pytest.raises(TemplateRejection):
        Template("t", jinja).apply(record)


# --- strict mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jinja", "answer_choices", "reason"),
    [
        ("{{ s }}", None, "no_separator"),
        ("{% if none_ %}a ||| b{% endif %}", None, "blank"),
        ("a ||| b ||| c", None, "three_parts"),
        ("{{ nested[0] }} ||| c", None, "three_parts"),
        (" ||| b", None, "empty_prompt"),
        ("a ||| \u00a0", None, "empty_target"),
        ("{{ missing }}a ||| b", None, "undefined_column"),
        ("{% if missing %}{% endif %}a ||| b", None, "undefined_column"),
        ("a ||| b", "a ||| {{ missing }}", "undefined_column"),
        ("{{ none_ }} ||| b", None, "printed_none"),
        ("{{ 'a' ~ none_ }} ||| b", None, "printed_none"),
        ("{{ [s, none_] | join }} ||| b", None, "printed_none"),
        ("{{ nan }} ||| b", None, "printed_none"),
        ("a ||| b", "c ||| d", "target_not_in_choices"),
        ("a ||| b", "", "target_not_in_choices"),
        ("a ||| {{ answer_choices[5] }}", "c ||| d", "template_error"),
        ("a ||| {{ nested.x.y }}", None, "template_error"),
        ("a ||| {{ s + 1 }}", None, "template_error"),
        ("{{ s -}", None, "template_error"),
        ("{{ 10 ** (10 ** 8) }}", None, "timeout"),
        ("{{ 'a' * 10 ** 10 }}", None, "too_large"),
    ],
)
def test_render_says_why_a_record_is_no_example(jinja, answer_choices, reason):
    record = {"s": "None", "none_": None, "nan": math.nan, "nested": ["x ||| y"]}
    with pytest.raises(TemplateRejection) as caught:
        Template("the name", jinja, answer_choices, file="f.yaml").render(record)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("f.yaml: template 'the name': ")
    assert "\n" not in str(caught.value)


MISSING = {
    "s": "hello", "t": None, "nan": math.nan, "words": [None, "a"], "d": {"x": None, "l": [None]},
    "rows": [{"k": None, "v": 1}, {"k": "b", "v": 2}], "pair": (None, 1), "none_s": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    "printed",
    [
        *(f"t | {name}" for name in ("string", "trim", "upper", "lower", "capitalize", "title")),
        *(f"t | {name}" for name in ("e", "safe", "replace('o', 'a')", "center(9)")),
        *("'%s' % t", "'%s' | format(t)", "'{}'.format(t)", "'{:>5}'.format(t)", "s ~ t"),
        *("words", "words | list", "words[:1]", "words | first", "words | join", "words | string"),
        *("words | map('upper') | join", "words | map('string') | list", "words | reverse | list"),
        *("d", "d.x", "d.l", "d['x'] | trim", "d | dictsort", "d.values() | list", "pair"),
        *("rows | map(attribute='k') | join", "rows[0]", "rows | list | pprint"),
        *("d.get('gone') | trim", "[].append(1) | string", "[] | most_frequent | string"),
        *("namespace(x=none).x | upper", "[s, d.get('x')]", "{'key': t}", "dict(key=t)"),
        *("nan", "nan | string", "'%s' % nan", "'{:.1f}'.format(nan)", "[nan]", "nan + 1"),
    ],
)  # fmt: skip
def test_no_filter_format_or_list_prints_a_none(printed):
    for jinja in (f"{{{{ {printed} }}}} ||| a", f"a ||| {{{{ {printed} }}}}"):
        with pytest.raises(TemplateRejection) as caught:
            Template("t", jinja).render(MISSING)
        assert caught.value.reason == "printed_none"
    with pytest.raises(TemplateRejection, match=r"it prints a (None|NaN)"):
        Template("t", "{{ s }} ||| {{ s }}", f"{{{{ {printed} }}}} ||| hello").render(MISSING)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("t or 'x'", "x"),
        ("t | default('x', true)", "x"),
        ("(t | default('x')) is none", "True"),
        ("'a' if t else 'b'", "b"),
        ("[t is none, t is not none, t == none, none == t, t != none]", [1, 0, 1, 1, 0]),
        ("[t in [none], none in words, t in words, t in [s], t == d.x]", [1, 1, 1, 0, 1]),
        ("[t is defined, t is sameas none, t is true, t is false]", [1, 1, 0, 0]),
        ("[t is string, t is number, t is mapping, t is sequence]", [0, 0, 0, 0]),
        ("[t is iterable, t is callable, t is boolean, t is integer]", [0, 0, 0, 0]),
        ("[t is lower, t is upper, t is eq(none), t == 0, t == '']", [0, 0, 1, 0, 0]),
        ("t | tojson", "null"),
        ("d | tojson", '{"l": [null], "x": null}'),
        ("t | int(7)", "7"),
        ("words | select | join", "a"),
        ("words | reject('none') | join", "a"),
        ("words | map('default', 'x', true) | join", "xa"),
        ("rows | selectattr('k', 'none') | map(attribute='v') | join", "1"),
        ("rows | rejectattr('k', 'equalto', none) | map(attribute='v') | join", "2"),
        ("words | length", "2"),
        ("words.index(none)", "0"),
        ("words | unique | list | length", "2"),
        ("{none: 'key'}[t]", "key"),
        ("d.get('x') is none", "True"),
        ("words.append(s) or words | length", "3"),
        ("'a b'.split(t)", "['a', 'b']"),
        ("s.split(sep=t)", "['hello']"),
        ("{'a': t, 'b': 1} | xmlattr", 'b="1"'),
        ("none_s | upper", "NONE"),
        ("[nan == nan, nan is number, nan is float, nan < 1]", [0, 1, 1, 0]),
        ("nan | int(3)", "3"),
    ],
)
def test_what_does_not_print_a_none_goes_on_as_with_any_none(printed, expected):
    expected = expected if isinstance(expected, str) else str(list(map(bool, expected)))
    jinja = f"a ||| {{{{ {printed} }}}}"
    assert Template("t", jinja).render(MISSING).completion == expected
    assert Template("t", jinja).apply(MISSING) == ["a", expected]


@pytest.mark.parametrize(
    "used",
    ["t + 1", "1 + t", "t + 'x'", "t < 1", "t | length", "t | list", "t()", "t[0] + 1", "t.x + 1"],
)
def test_what_fails_with_a_none_fails(used):
    with pytest.raises(TemplateRejection) as caught:
        Template("t", f"a ||| {{{{ {used} }}}}").render(MISSING)
    assert caught.value.reason == "template_error"
    assert "Unprintable" not in str(caught.value)
    with pytest.raises(TemplateRejection):
        Template("t", f"a ||| {{{{ {used} }}}}").apply(MISSING)


def test_a_none_beside_a_draw_changes_nothing_of_what_is_drawn():
    template = Template("t", "{{ range(10 ** 9) | random }} ||| {{ range(10 ** 9) | choice }}")
    drawn = template.render(MISSING)
    assert [drawn.prompt, drawn.completion] == template.apply(MISSING)


def test_a_rejection_for_a_missing_column_names_it_and_the_columns_there_are():
    with pytest.raises(
        TemplateRejection, match="'reviw' is undefined; the record has review, stars"
    ):
        Template("t", "{{ reviw }} ||| a").render({"stars": 1, "review": "r"})


def test_a_choice_by_a_number_that_is_text_is_rejected_with_the_remedy():
    """As every cell of a CSV file is."""
    by_label = "{{ a }} ||| {{ answer_choices[label] }}"
    template = Template("t", by_label, "no ||| yes")
    assert template.render({"a": "x", "label": 1}).completion == "yes"
    remedy = r"write answer_choices\[label \| int\]"
    for label in ("1", "-1", "1.0"):
        with pytest.raises(TemplateRejection, match=remedy) as caught:
            template.render({"a": "x", "label": label})
        assert caught.value.reason == "template_error"
        mended = Template("t", by_label.replace("label", "label | int"), "no ||| yes")
        assert mended.render({"a": "x", "label": label}).completion == "yes"
    for label in (5, "yes"):
        with pytest.raises(TemplateRejection) as caught:
            template.render({"a": "x", "label": label})
        assert "int" not in str(caught.value)


def test_a_record_with_the_reserved_column_is_rejected():
    (result,) = Template("t", "a ||| b").render_batch([{"answer_choices": []}])
    assert result.reason == "record_has_answer_choices"


@pytest.mark.parametrize(
    ("jinja", "expected"),
    [
        ("{{ s }} ||| {{ long }}", ("None", "x" * 5000)),
        ("{{ missing | default('d') }} ||| b", ("d", "b")),
        ("{{ 'no' if missing is not defined }}{{ '!' if none_ is none }} ||| b", ("no!", "b")),
        ("{{ pipe | upper }} {{ pipe | length }} ||| {{ quad }}", ("A|||B 5", "p||||q")),
        ("{{ flag }} ||| {{ 1.0 }}", ("True", "1.0")),
    ],
)  # fmt: skip
def test_render_keeps_whole_what_the_record_says(jinja, expected):
    record = {"s": "None", "long": "x" * 5000, "none_": None, "pipe": "a|||b", "quad": "p||||q"}
    rendered = Template("t", jinja).render({**record, "flag": True})
    assert (rendered.prompt, rendered.completion) == expected


def test_render_batch_gives_what_render_gives_in_order():
    template = Template("t", "{{ s }} ||| {{ t }}", "a ||| b")
    records = [{"s": i, "t": random.Random(i).choice("abc")} for i in range(700)]
    records[5], records[300] = {}, {"s": None, "t": "a"}
    results = template.render_batch(records)
    assert {type(result) for result in results} == {Rendered, TemplateRejection}
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Rendered):
            assert template.render(record) == result
        else:
            with pytest.raises(TemplateRejection) as caught:
                template.render(record)
            assert (caught.value.reason, str(caught.value)) == (result.reason, str(result))


@pytest.mark.parametrize(
    "drawn", ["{{ words | choice }}", "{{ words | random }}", "{{ [1, 2, 3, 4, 5] | choice }}"]
)
def test_draws_depend_on_the_record_and_the_template_alone(drawn):
    template = Template("t", f"a {drawn} ||| {{{{ i }}}}")
    records = [{"words": ["1", "2", "3", "4", "5"], "i": i} for i in range(60)]
    first = [result.prompt for result in template.render_batch(records)]
    assert [template.render(record).prompt for record in reversed(records)] == first[::-1]
    assert set(first) == {f"a {i}" for i in range(1, 6)}
    other = Template("t", f"b {drawn} ||| {{{{ i }}}}").render_batch(records)
    assert [result.prompt[2:] for result in other] != [prompt[2:] for prompt in first]


def test_a_draw_is_the_same_on_every_machine():
    template = Template("t", "{{ words | choice }} ||| a")
    words = "abcdefghijklmnopqrstuvwxyz"
    drawn = [template.render({"words": list(words), "i": i}).prompt for i in range(12)]
    assert "".join(drawn) == "wvcielohppzu"


def test_columns_are_what_a_record_must_supply():
    template = Template(
        "t",
        "{% set x = a %}{% for b in c %}{{ b }}{{ loop.index }}{{ answer_choices }}{% endfor %}"
        "{{ range(3) | join }}{{ zip(d, x) }}{{ namespace() }} ||| {{ e.f | choice }}",
        "{{ g }} ||| h",
    )
    assert template.columns == {"a", "c", "d", "e", "g"}


# --- files ---------------------------------------------------------------------------------------

FILE = """dataset: d
templates:
  key-1: !Template
    answer_choices: a ||| b
    id: key-1
    jinja: "{{ x }} ||| a"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: first
    reference: somebody
    task_template: true
  key-2: !Template
    answer_choices: null
    id: key-2
    jinja: "{{ y }} ||| b"
    metadata: !TemplateMetadata {}
    name: second
    reference: ''
"""


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "templates.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def test_a_file_gives_its_templates_by_name_in_its_order(write):
    path = write(FILE)
    templates = load_templates(path)
    assert list(templates) == ["first", "second"]
    assert templates["first"] == Template(
        name="first",
        jinja="{{ x }} ||| a",
        answer_choices="a ||| b",
        id="key-1",
        reference="somebody",
        metadata={
            "choices_in_prompt": False,
            "languages": ["en"],
            "metrics": ["Accuracy"],
            "original_task": True,
        },
        file=str(path),
        line=3,
        key="key-1",
    )
    assert templates["second"].answer_choices is None
    assert set(templates["second"].metadata.values()) == {None}
    assert ift_jax.load_templates(str(path)) == templates


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: second", "name: first", "line 15: template 'first': line 3 has one of this name"),
        ("key-2: !Template", "key-2:", "template key-2: write `!Template` after its key"),
        ("key-2: !Template", "key-2: !Templat", "line 15: .*!Templat"),
        ("key-2: !Template", "key-2: !!python/object:os.system", "line 15: .*python"),
        ("key-2: !Template", "key-1: !Template", "line 15: the key 'key-1' occurs twice"),
        ("    name: second\n", "", "line 15: template 'key-2': the key 'name' is missing"),
        ('    jinja: "{{ y }} ||| b"\n', "", "template 'second': the key 'jinja' is missing"),
        ("    answer_choices: null\n", "", "answer_choices' is missing .*answer_choices: null"),
        ('jinja: "{{ y }} ||| b"', "jinja: 5", "jinja is of type int, not text: put it in quotes"),
        ("name: second", "name: yes", "name is of type bool, not text"),
        ("{{ y }} ||| b", "\\n{{ y }", "line 15: template 'second': line 2 of jinja: unexpected"),
        ("{{ y }} ||| b", "{% if y %}", "line 15: template 'second': line 1 of jinja: .*endif"),
        ("{{ y }} ||| b", "{{ y | nope }}", "line 1 of jinja: No filter named 'nope'"),
        ("a ||| b", "a ||| {{", "line 3: template 'first': line 1 of answer_choices: "),
        ("!TemplateMetadata {}", "a text", "metadata is of type str"),
        ("dataset: d", "dataset: [", "line 3: "),
        ("dataset: d", "dataset: 2001-99-99", "cannot be read as YAML: .*month"),
        ("templates:", "template:", "no mapping `templates:`"),
        ("dataset: d", "dataset: \x00", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_a_line_that_says_where(write, old, new, message):
    assert old in FILE
    path = write(FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_templates(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\xff", b"[", b"- a", b"templates: []", b"[" * 9999]
)
def test_what_is_no_template_file_is_refused(write, content):
    with pytest.raises(InputError):
        load_templates(write(content))


@pytest.mark.parametrize(
    "wrong", ["!Template\n    - name: a", "!Template text", "!TemplateMetadata [a]"]
)
def test_a_tag_with_no_mapping_below_it_is_named_with_its_line(write, wrong):
    with pytest.raises(InputError, match=r"line 2: expected a mapping node"):
        load_templates(write(f"templates:\n  a: {wrong}\n".encode()))


def bomb(first, more, levels=9):
    """YAML whose aliases to aliases stand for 10**levels values."""
    lines = [f"  - &b0 {first}"]
    lines += [f"  - &b{i} {more.replace('B', f'*b{i - 1}')}" for i in range(1, levels)]
    return "bomb:\n" + "\n".join(lines) + "\n"


TEN = "[" + ",".join("B" * 10) + "]"
LANGUAGES = "metadata: !TemplateMetadata {languages: *b8}"


@pytest.mark.parametrize(
    ("before", "old", "new", "message"),
    [
        (bomb("[x]", TEN), "name: second", "name: *b8", "line 8: its aliases repeat more"),
        (bomb("[x]", TEN), "metadata: !TemplateMetadata {}", LANGUAGES, "aliases repeat more"),
        (bomb("{a: 1}", "{<<: [B, B]}", 24), "", "", "aliases repeat more"),
        (f"long: &b0 {'x' * 2000}\nall: [{', '.join(['*b0'] * 2000)}]\n", "", "", "line 2: its"),
        ("", "dataset: d", "dataset: &l [*l]", "line 1: an alias stands inside what it repeats"),
    ],
)
def test_a_file_that_aliases_blow_up_is_refused_at_once(write, before, old, new, message):
    path = write(before + FILE.replace(old, new, 1))
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as caught:
        load_templates(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 300
    assert peak < 20e6


def test_aliases_that_repeat_little_are_read(write):
    path = write(FILE.replace("metadata: !TemplateMetadata {}", "metadata: *m").replace(
        "metadata: !TemplateMetadata", "metadata: &m !TemplateMetadata", 1))  # fmt: skip
    first, second = load_templates(path).values()
    assert first.metadata == second.metadata
    assert first.metadata["languages"] == ["en"]


def test_messages_show_the_beginning_of_a_long_name_only(write):
    with pytest.raises(InputError, match="the key 'jinja' is missing") as caught:
        load_templates(write(FILE.replace('    jinja: "{{ y }} ||| b"\n', "").replace(
            "name: second", f"name: {'x' * 10_000}")))  # fmt: skip
    assert len(str(caught.value)) < 400
    template = Template("x" * 10_000, "{{ y }} ||| b")
    assert len(str(template.render_batch([{}])[0])) < 400
    named = FILE.replace("name: second", f"name: [{', '.join(['x'] * 5000)}]")
    with pytest.raises(InputError, match="template 'key-2': name is of type list") as caught:
        load_templates(write(named))
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_templates(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="directory"):
        load_templates(tmp_path)


# --- lint ----------------------------------------------------------------------------------------


def findings(*templates, **kw):
    return " / ".join(lint({str(i): template for i, template in enumerate(templates)}, **kw))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (Template("t", "{{ x }} ||| {{ z }}"), "f: template 't': the data has no column x, z"),
        (Template("t", "{{ y }}"), "no ||| separates"),
        (Template("t", "{{ y }} ||| a ||| b"), "more than one |||"),
        (Template("t", "{% for w in y %}|||{% endfor %}"), "more than one |||"),
        (Template("t", "a ||| b", key="k", id="i"), "its key k is not its id i"),
        (Template("t", "a ||| b", metadata={"metrics": []}), "metadata lacks choices_in_prompt, "),
        (Template("t", "{{ y }} ||| a", "a ||| b"), "never used in the text"),
        (Template("t", "{{ y }} ||| {{ y | trim }}"), "the target is y, which the prompt prints"),
        (Template("t", "{{ y.text }} ||| {{ y.text }}"), "read in the prompt in 40 of 40 samples"),
        (Template("t", "{{ y.gone }} ||| a"), "40 of 40 samples are rejected: 40 template_error"),
        (
            Template("t", "{{ answer_choices }} ||| {{ answer_choices[n] }}", "a ||| b ||| c"),
            "the choice 'c' is no sample's target",
        ),
    ],
)  # fmt: skip
def test_lint_finds(template, problem):
    template = Template(**{**vars(template), "file": "f"})
    records = [{"y": {"text": "a long text"}, "n": i % 2} for i in range(40)]
    assert problem in findings(template, columns=["y", "n"], records=records)


LABELLED = [
    {"text": f"dryer {i}", "label": i % 2, "name": ["not good", "good"][i % 2], "rest": ["a", "b"]}
    for i in range(40)
]
CHOOSES = "{{ answer_choices[label] }}"
TOLD = "the target is chosen by label, which the prompt tells"
READ = "the prompt tells which choice is the target in 40 of 40 samples"


@pytest.mark.parametrize(
    ("jinja", "problems"),
    [
        (f"{{{{ text }}}} ({CHOOSES})? ||| {CHOOSES}", [TOLD, READ]),
        (f"{{{{ text }}}} {{{{ label }}}}? ||| {CHOOSES}", [TOLD]),
        (f"{{{{ text ~ '|' ~ label | string }}}}? ||| It is {CHOOSES}", [TOLD]),
        ("{{ label }}? ||| {{ answer_choices[label | int] | lower }}", [TOLD]),
        ("{{ label }}? ||| {{ answer_choices[label - 1] }}", [TOLD]),
        ("{{ [text, name][label] }}? ||| {{ [text, name][label] }}", [TOLD]),
        ("{{ label }}? ||| {{ {0: answer_choices[0], 1: answer_choices[1]}[label] }}", [TOLD]),
        (f"{{% if text %}}{{{{ label }}}} ||| {CHOOSES}{{% endif %}}", [TOLD]),
        (f"{{{{ label }}}}? ||| {{% if text %}}{CHOOSES}{{% endif %}}", [TOLD]),
        (f"{{{{ text }}}} {{{{ name | title }}}}? ||| {CHOOSES}", [READ]),
        (
            "Was it {{ name }}? ||| {% if label %}{{ answer_choices[1] }}{% else %}"
            "{{ answer_choices[0] }}{% endif %}",
            [READ],
        ),
    ],
)  # fmt: skip
def test_lint_finds_a_choice_that_the_prompt_tells(jinja, problems):
    found = findings(Template("t", jinja, "not good ||| good"), records=LABELLED)
    assert [problem for problem in (TOLD, READ) if problem in found] == problems


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ text }}?",
        "{{ text }}: {{ answer_choices | join(' or ') }}?",
        "{{ text }}: {% for choice in answer_choices %}{{ choice }} {% endfor %}?",
        "{{ text }}: {{ answer_choices[0] }} or {{ answer_choices[1] }}?",
        "{{ text }}: is it good?",
        "{{ text }}: is it not good?",
        "{{ text }}: {% if label is defined %}how is it{% endif %}?",
        "{{ text }} {{ rest[label] }}",
        "{{ text }}: {{ answer_choices[1 - label] }} or {{ answer_choices[label] }}?",
        "{% for label in rest %}{{ label }}{% endfor %}?",
    ],
)
def test_lint_lets_prompts_be_that_do_not_tell_the_choice(prompt):
    template = Template("t", f"{prompt} ||| {CHOOSES}", "not good ||| good")
    assert "the prompt" not in findings(template, columns=LABELLED[0], records=LABELLED)
    assert "the prompt" not in findings(template, records=LABELLED[1:2] * 40)  # one target only


def test_lint_does_not_take_a_calculation_or_few_samples_for_a_leak():
    asks = Template("t", "Is {{ label }} even? ||| {{ answer_choices[label % 2] }}", "yes ||| no")
    assert "the prompt" not in findings(asks, records=LABELLED)
    names = Template(
        "t", "{{ text }} {{ name }} ||| {{ answer_choices[label] }}", "not good|||good"
    )
    assert READ in findings(names, records=LABELLED)
    assert "the prompt" not in findings(names, records=LABELLED[:6])
    # In extractive tasks the right one of a record's own choices stands in the prompt.
    own = Template("t", names.jinja, "{{ name }} ||| good {{ text }}")
    assert "the prompt" not in findings(own, records=LABELLED)


def test_lint_finds_templates_of_the_same_name_or_text():
    named = Template("a", "x|||y", line=3), Template("a", "z", line=9)
    assert "the same name as template 'a' of line 3" in findings(*named)
    assert "the same text as template 'a'" in findings(
        Template("a", "x|||y"), Template("b", "x|||y")
    )


def test_lint_goes_on_after_a_template_that_is_no_jinja():
    broken = Template("broken", "{% if %}", file="f", line=2)
    assert findings(broken, Template("t", "{{ y }}", line=5), columns=["y"]).startswith(
        "f, line 2: template 'broken': line 1 of jinja: Expected an expression, "
    )
    assert "no ||| separates" in findings(broken, Template("t", "{{ y }}"), columns=["y"])


def test_lint_renders_as_the_task_does():
    prints_none = Template("t", "{{ x }} ||| {{ y }}")
    assert "1 printed_none" in findings(prints_none, records=[{"x": 1, "y": None}])
    rendered = findings(prints_none, records=[{"x": 1, "y": None}], compatible=True)
    assert "rejected" not in rendered


def test_lint_finds_nothing_wrong_with_templates_in_which_nothing_is():
    templates = [
        "{% if a %}yes ||| {{ b }}{% else %}no ||| {{ b }}{% endif %}",
        "{{ a }} {{ b }}? ||| {% if a %}{{ a }}{% else %}{{ b }}{% endif %}",
        "{{ a.split('|||') }} ||| {{ b }}",
    ]
    metadata = dict.fromkeys(("choices_in_prompt", "languages", "metrics", "original_task"), "x")
    named = [Template(text, text, metadata=metadata) for text in templates]
    assert not findings(*named, columns=["a", "b"])


# --- our own templates ----------------------------------------------------------------------


def test_our_review_templates_have_nothing_to_find():
    records = [{**REVIEW, "star_rating": i % 5 + 1} for i in range(20)]
    assert not lint(load_templates(REVIEWS), list(REVIEW), records)


def test_our_review_templates_render():
    rating, review, headline = load_templates(REVIEWS).values()
    assert rating.render(REVIEW).completion == "4"
    assert rating.render(REVIEW).answer_choices == ("1", "2", "3", "4", "5")
    assert "1, 2, 3, 4 or 5" in rating.render(REVIEW).prompt
    assert review.render(REVIEW).completion == REVIEW["review_body"]
    assert "4 out of 5" in review.render(REVIEW).prompt
    assert headline.render(REVIEW).completion == REVIEW["review_headline"]


@pytest.mark.parametrize("stars", [0, 6, 7, -1, "abc", "", None, 2.5, math.nan, True, [3]])
def test_a_rating_off_the_scale_is_rejected(stars):
    rating = load_templates(REVIEWS)["Predict the rating"]
    with pytest.raises(TemplateRejection):
        rating.render({**REVIEW, "star_rating": stars})
