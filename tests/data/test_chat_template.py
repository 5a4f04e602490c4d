"""A chat template that is run once gives what it gives when it is run for each conversation."""

import pickle

import pytest
from conftest import CHAT_TEMPLATE, make_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ift_jax.data.chat import PLAIN_TEMPLATE
from ift_jax.data.chat_template import ChatTemplate, prints_contents_only

properties = settings(derandomize=True, deadline=None, database=None, max_examples=60)
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
FIXED = {
    "ChatML": CHAT_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
    "default system turn": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + "
        "message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "concatenated, twice": LOOP % "{{ m.role ~ ': ' ~ m.content ~ m['content'] }}{{ loop.index }}",
    "some left out": LOOP % "{% if m.role == 'user' %}{{ m.content }}{% else %}-{% endif %}",
    "refuses": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ),
}
RUN = {
    "trims": "{{ m.content | trim }}",
    "calls a method": "{{ m['content'].strip() }}",
    "looks into the content": "{% if 'a' in m.content %}A{% endif %}{{ m.content }}",
    "takes a part": "{{ m.content[1:] }}",
    "an empty content": "{{ m.content or 'nothing' }}",
    "compares": "{% if m.content == 'a' %}A{% endif %}",
    "measures": "{{ m.content | length }}",
    "another name": "{% set c = m.content %}{{ c | upper }}",
    "another name for the turn": "{% set n = m %}{{ n.content | upper }}",
    "the turn as JSON": "{{ m | tojson }}",
    "the field by a variable": "{% set k = 'content' %}{{ m[k] | upper }}",
    "a method of the turn": "{{ m.get('content') | upper }}",
    "all turns as JSON": "{{ messages | tojson }}",
    "another turn's content": "{{ messages[0]['content'] | upper }}",
    "the turn before": "{% if loop.previtem %}{{ loop.previtem.content | upper }}{% endif %}",
    "printed text in a filter": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "printed text in a name": "{% set c %}{{ m.content }}{% endset %}{{ c | upper }}",
    "a macro": "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
    "a loop over the turn": "{% for x in m.content %}{{ x }}.{% endfor %}",
    "multiplied": "{{ m.content * 2 }}",
    "the last turns": "{% for n in messages[1:] %}{{ n.content | upper }}{% endfor %}",
    "the same name again": "{% for m in [{'content': 'x'}] %}{{ m.content }}{% endfor %}",
    "chance": "{{ [1, 2, 3] | random }}{{ m.content }}",
    "the date": "{{ strftime_now('%H:%M:%S.%f') }}{{ m.content }}",
}
ROLES = st.sampled_from(["system", "user", "assistant", "other"])
turns = st.lists(st.tuples(ROLES, st.text(max_size=6)), min_size=1, max_size=5)


def with_template(text: str) -> ChatTemplate:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


@pytest.mark.parametrize("name", FIXED)
def test_contents_stand_where_the_template_prints_them(name):
    template = with_template(FIXED[name])
    assert prints_contents_only(FIXED[name])

    @properties
    @given(turns)
    @example([("user", " a\n"), ("assistant", "{{ 1 }}\u2063content 0\u2063")])
    @example([("user", "")])
    def check(said):
        messages = [{"role": role, "content": content} for role, content in said]
        assert template.prompt(messages) == template.run(messages)

    check()


@pytest.mark.parametrize("name", RUN)
def test_templates_that_do_more_with_contents_are_run_every_time(name):
    text = LOOP % RUN[name] if "m" in RUN[name] else RUN[name]
    assert not prints_contents_only(text)
    template = with_template(text)
    for content in ("a", " A b ", ""):
        messages = [{"role": "user", "content": content}, {"role": "user", "content": "a c"}]
        if name not in ("chance", "the date"):
            assert template.prompt(messages) == template.run(messages)


def test_the_real_template_is_run_once(smollm2):
    from ift_jax.pretrained import load_chat

    assert prints_contents_only(load_chat(smollm2).tokenizer.chat_template)


def test_a_template_runs_once_for_each_row_of_roles(monkeypatch):
    template, runs = with_template(CHAT_TEMPLATE), []
    run = template.run
    monkeypatch.setattr(template, "run", lambda messages: runs.append(1) or run(messages))
    for number in range(20):
        template.prompt([{"role": "user", "content": str(number)}])
        template.prompt([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    assert len(runs) == 2
    # A turn with more than a role and a content may be printed otherwise.
    template.prompt([{"role": "user", "content": "a", "name": "b"}])
    assert len(runs) == 3


def test_a_template_that_is_set_later_is_used():
    template = with_template(CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "a"}]
    assert template.prompt(messages).startswith("<|im_start|>user")
    template.tokenizer.chat_template = PLAIN_TEMPLATE
    assert template.prompt(messages) == "a\n"
    assert pickle.loads(pickle.dumps(template)).prompt(messages) == "a\n"
