"""Whatever the record, the template or the file: an example, or a reason why not."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ift_jax.data.templates import Rendered, Template, TemplateRejection, lint, load_templates
from ift_jax.errors import InputError

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["|||", "a ||| b", "||||", "{{ a }}", "{% if %}", "\ud800", "\r\n", "\u00a0"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "b", "0"]), inner, max_size=3)
    ),
    max_leaves=5,
)
COLUMNS = st.sampled_from(["a", "b", "words", "with-dash", "self", "answer_choices", "", "a b"])
RECORDS = st.dictionaries(COLUMNS, VALUES, max_size=4)
FRAGMENTS = st.sampled_from(
    [
        "{{ a }}",
        " ||| ",
        "|||",
        "text",
        "{{ b.text }}",
        "{{ words | join(', ') }}",
        "{{ words[0] }}",
        "{{",
        "}}",
        "{#",
        "#}",
        "{%",
        "%}",
        "{% if a %}",
        "{% else %}",
        "{% endif %}",
        "{% for w in words %}",
        "{{ w }}",
        "{% endfor %}",
        "{% set a = b %}",
        "\n",
        "-",
        "{{ a | length }}",
        "{{ answer_choices[a] }}",
        "{{ 1 / b }}",
        "{{ a | choice }}",
        "{{ words | most_frequent }}",
        "{{ a.__class__ }}",
        "{{ words.append(a) or '' }}",
        "{{ a ~ b }}",
        "{{ a + b }}",
        "{{ a * 99 }}",
        "{{ self }}",
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=5), max_size=8).map("".join)
FUZZ = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
FILE = """templates:
  key: !Template
    answer_choices: null
    id: key
    jinja: "TEXT ||| b"
    metadata: !TemplateMetadata {}
    name: name
    reference: ''
"""


def assert_each_is_accepted_or_rejected_with_a_reason(template, records, compatible=False):
    results = template.render_batch(records, compatible=compatible)
    assert len(results) == len(records)
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Rendered):
            assert result.prompt == result.prompt.strip() != ""
            assert result.completion == result.completion.strip() != ""
            if compatible:
                assert template.apply(record) == [result.prompt, result.completion]
            else:
                assert result.completion in (result.answer_choices or (result.completion,))
        else:
            assert isinstance(result, TemplateRejection)
            assert result.reason
            assert str(result)


@pytest.mark.slow
@settings(max_examples=500, **FUZZ)
@given(
    records=st.lists(RECORDS, min_size=20, max_size=20),
    choices=st.sampled_from([None, "a", "{{ b }}|||1"]),
)
def test_ten_thousand_fuzzed_records_are_accepted_or_rejected(records, choices):
    jinja = "{{ a }} {% for w in words %}{{ w }}{% endfor %} ||| {{ b }}{{ a | length }}"
    assert_each_is_accepted_or_rejected_with_a_reason(Template("t", jinja, choices), records)


@settings(max_examples=1000, **FUZZ)
@given(jinja=TEXTS, choices=st.none() | TEXTS, record=RECORDS)
def test_a_thousand_fuzzed_templates_render_or_say_why_not(jinja, choices, record):
    template = Template("t", jinja, choices)
    records = [record, {"a": "x", "b": {"text": "y"}, "words": ["u", "v"]}, {"a": 1, "b": 2}]
    assert_each_is_accepted_or_rejected_with_a_reason(template, records)
    assert_each_is_accepted_or_rejected_with_a_reason(template, records[:2], compatible=True)
    for look in (template.apply, lambda record: lint({"t": template}, ["a"], [record])):
        outcome = outcome_of(look, record)
        assert isinstance(outcome, list) or "\n" not in str(outcome)


@settings(max_examples=500, **FUZZ)
@given(text=st.text(max_size=40) | TEXTS.map(lambda text: FILE.replace("TEXT", text)))
def test_fuzzed_files_load_or_are_refused(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome = outcome_of(load_templates, path)
    assert isinstance(outcome, dict) or "\n" not in str(outcome)


def outcome_of(function, argument):
    try:
        return function(argument)
    except (TemplateRejection, InputError) as error:
        return error
