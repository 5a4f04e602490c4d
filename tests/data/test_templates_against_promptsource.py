"""Our reader next to promptsource 0.2.3's own class: the same parts, or a failure in both.

The reference is downloaded once into the user's cache; without a network these tests skip.
"""

import contextlib
import copy
import functools
import glob
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tarfile
import types
from collections import Counter
from pathlib import Path

import pytest
import yaml
from jinja2 import nodes, pass_context

from ift_jax.data import template_worker
from ift_jax.data.template_sandbox import Success, render_records
from ift_jax.data.templates import Rendered, Template, load_templates

SDIST_SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"
REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("IFT_JAX_DATA", REPOSITORY / "../shared/data"))


@pytest.fixture(scope="session")
def promptsource_root(tmp_path_factory):
    """The unpacked source distribution."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ift_jax"
    root = cache / "promptsource-0.2.3"
    if not root.exists():
        scratch = tmp_path_factory.mktemp("promptsource")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        pip += ["--ignore-requires-python", "-d", str(scratch), "promptsource==0.2.3"]
        result = subprocess.run(pip, capture_output=True, text=True, timeout=120)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["pip failed"]
            pytest.skip(f"promptsource 0.2.3 cannot be downloaded: {lines[-1]}")
        sdist = scratch / "promptsource-0.2.3.tar.gz"
        assert hashlib.sha256(sdist.read_bytes()).hexdigest() == SDIST_SHA256
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        cache.mkdir(parents=True, exist_ok=True)
        try:
            (scratch / "promptsource-0.2.3").rename(root)
        except OSError:  # another file system, or another test process was first
            root = scratch / "promptsource-0.2.3"
    return root


@pytest.fixture(scope="session")
def reference(promptsource_root):
    """promptsource's module `templates`, without its web application's dependencies."""
    path = promptsource_root / "promptsource" / "templates.py"
    stubs = {name: types.ModuleType(name) for name in ("pandas", "pkg_resources")}
    stubs["pkg_resources"].resource_filename = lambda *_: str(path.parent / "templates")
    spec = importlib.util.spec_from_file_location("promptsource_templates", path)
    module = importlib.util.module_from_spec(spec)
    kept = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        stubs["pandas"].DataFrame = object
        spec.loader.exec_module(module)
    finally:
        for name, original in kept.items():
            sys.modules.pop(name)
            if original is not None:
                sys.modules[name] = original
    # It compiles its template anew for every record. That can be kept, but for draws from
    # constant lists, which it makes while it compiles: they must wait until it renders.
    module.env.filters["choice"] = pass_context(lambda _, items: module.choice(items))
    module.env.from_string = functools.lru_cache(maxsize=64)(module.env.from_string)
    return module


class Comparison:
    """Counts what was compared, so that a test can tell whether it compared anything."""

    def __init__(self, reference):
        self.reference = reference
        assert reference.Template.pipe_protector == template_worker.COMPATIBLE_GUARD
        self.counts = Counter()
        self.different = []

    def add(self, jinja, answer_choices, records):
        theirs = self.reference.Template("name", jinja, "", answer_choices=answer_choices)
        replies = render_records(jinja, answer_choices, False, records)
        strict = Template("name", jinja, answer_choices).render_batch(records)
        for record, reply, rendered in zip(records, replies, strict, strict=True):
            ours = reply.parts if isinstance(reply, Success) else "fails"
            expected = self._apply(theirs, record, truncate=True)
            self.counts["fails" if expected == "fails" else "renders"] += 1
            if ours != expected:
                self.different.append((jinja, answer_choices, record, expected, reply))
            if isinstance(rendered, Rendered):
                self.counts["strict"] += 1
                expected = self._apply(theirs, record, truncate=False)
                if [rendered.prompt, rendered.completion] != expected:
                    self.different.append((jinja, answer_choices, record, expected, rendered))

    def report(self):
        lines = ["\n".join(map(repr, case)) for case in self.different[:3]]
        return f"{len(self.different)} differ, such as\n" + "\n\n".join(lines)

    def _apply(self, theirs, record, truncate):
        try:
            # Both draw from Python's global generator, ours after seeding it from the record.
            random.seed(template_worker.seed(theirs.jinja, record))
        except Exception:
            random.seed(0)
        # Strict mode guards a separator in the data by characters that no length filter counts
        # differently; for that comparison the reference gets the same.
        guard = template_worker.COMPATIBLE_GUARD if truncate else template_worker.STRICT_GUARD
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception):
            patch.setattr(self.reference.Template, "pipe_protector", guard)
            return theirs.apply(copy.deepcopy(record), truncate=truncate)
        return "fails"


ODD_RECORDS = [
    {"s": "plain text", "t": "two\nlines", "n": 3, "f": 1.5, "words": ["b", "a", "b"]},
    {"s": "a ||| b", "t": "p||||q", "n": 0, "f": 1.0, "words": ["x|||y", "z"]},
    {"s": "|||", "t": "||||||", "n": -1, "f": -2.25, "words": []},
    {"s": "x" * 2053, "t": "x" * 2054, "n": 10**20, "f": 1e300, "words": ["w"] * 3},
    {"s": "word " * 500, "t": "y" * 5000, "n": 2, "f": float("inf"), "words": [1, 2, 2]},
    {"s": "\u00a0padded\u00a0", "t": "\u200bzero\u200b", "n": True, "f": None, "words": None},
    {"s": "", "t": " \n ", "n": None, "f": 0.1, "words": [None, "a"]},
    {"s": "{{ n }} {% if %} {# c #}", "t": "<b>&amp;</b>", "n": 1, "f": 2, "words": ["é", "日本"]},
    {"s": "CR\r\nLF\r", "t": "\ud800 lone", "n": "1", "f": "2.5", "words": ("t", "u")},
    {"s": "😀 ünï", "t": template_worker.COMPATIBLE_GUARD, "n": 4, "f": 3.7, "words": "text"},
    {},
    {"s": 5, "t": ["l"], "n": [1], "f": {}, "words": {"k": "v"}},
    {"s": "a-b", "with-dash": "v", "n": 1, "f": 1, "t": "", "words": ["1"]},
    {"s": "s", "t": "t", "n": 1, "f": 1, "words": [], "answer_choices": ["a"]},
    {"s": "s", "self": 1}, {"s": "s", 5: "number"}, {"s": "s", "loop": 2, "range": 3},
    {
        "s": "Some text. More text.", "t": "B", "n": 1, "f": 2.5, "words": ["no", "yes", "no"],
        "d": {"text": ["t1", "t|||2"], "label": [0, 1], "inner": {"deep": "value"}},
        "rows": [{"k": "b", "v": 2, "ok": True}, {"k": "a", "v": 1, "ok": False}],
    },
    {
        "s": "q", "t": "a", "n": 2, "f": 0.5, "words": ["1", "2", "3"],
        "d": {"text": [], "label": None}, "rows": [],
    },
]  # fmt: skip

TEXTS = [
    # printing, separators, white space
    "{{s}} ||| {{t}}",
    "{{s}}",
    "",
    "\n \n",
    "{{s}}|||{{t}}|||{{n}}",
    "a ||| b ||| c",
    "{{s}}|||",
    "|||{{s}}",
    "{{ n }} ||| {{ f }}",
    "{{words}} ||| {{d}}",
    "{{s}}||||{{t}}",
    "x\r\ny ||| {{s}}\n",
    '{{"|||"}}{{s}}',
    "{# ||| #}{{s}} ||| {{t}}",
    "{% raw %}{{s}}{% endraw %} ||| {{t}}",
    "{{s -}} ||| {{t}}",
    "{{- s}} ||| {{t}}",
    "{%- if n %} {{s}} {% endif -%} ||| {{t}}",
    '{{s + " " + t}} ||| x',
    "{{ s ~ t }} ||| {{ n + 1 }}",
    "{{s}",
    "{% if %}",
    "{{ {'a': {}} }}",
    "{{ s }} ||| {{ undefined_name }}",
    "{{ undefined_name.attribute }}",
    "{{ d.inner.deep }}",
    "{{ with-dash }} ||| {{s}}",
    "{{ self }} ||| {{ loop }}",
    "{{ range }} ||| {{ s }}",
    # statements
    "{% if n %}{{s}} ||| {{t}}{% endif %}",
    "{{s}} ||| {% if n %}{{t}}{% endif %}",
    "{% if n == 1 %}one{% elif n == 2 %}two{% else %}many{% endif %} ||| {{n}}",
    "{% set x = s | upper %}{{x}} ||| {{x | lower}}",
    "{% set x %}{{s}}!{% endset %}{{x}} ||| {{t}}",
    "{% for w in words %}{{loop.index}}. {{w}}\n{% endfor %}|||{{words | length}}",
    "{% for w in words if w %}{{w}}{% if loop.last %}. {% endif %}{% else %}no{% endfor %}|||x",
    "{{ s if n else t }} ||| {{ 'yes' if s }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% include 'x' ignore missing %}|||a",
    "{% extends 'x' %}",
    "{% macro m(a) %}<{{a}}>{% endmacro %}{{m(s)}}|||{{m()}}",
    "{% filter upper %}{{s}}{% endfilter %} ||| {{t}}",
    "{% with a = s %}{{a}}{% endwith %} ||| b",
    "{% for k, v in d.items() %}{{k}}={{v}};{% endfor %} ||| {{ d.keys() | list | join(',') }}",
    "{% set o = namespace(n=0) %}{% for w in words %}{% set o.n = o.n + 1 %}{% endfor %}{{o.n}}|||",
    # filters
    "{{ words | join(', ') }} ||| {{ words | first }}{{ words | last }}",
    "{{ s | replace('a', 'b') }} ||| {{ s | length }}",
    "{{ missing | default('none') }} ||| {{ s | default('x', true) }}",
    "{{ f | int }} ||| {{ n | float }}",
    "{{ s | trim }} ||| {{ s | lower | capitalize }}",
    "{{ s | list }} ||| {{ f | round(1) }}{{ f | round | int }}",
    "{{ words | map('upper') | list }} ||| {{ words | map('length') | join }}",
    "{{ n | abs }} ||| {{ words | unique | list }}",
    "{{ rows | selectattr('ok') | map(attribute='k') | list }} ||| {{ rows | join('-', 'v') }}",
    "{{ rows | selectattr('v', 'equalto', 2) | list | length }} ||| {{ rows | sum('v') }}",
    "{{ words | reject('equalto', 'a') | list }} ||| {{ words | select | list }}",
    "{{ words | sort | join }} ||| {{ words | min }}{{ words | max }}",
    "{{ words | most_frequent }} ||| {{ words | most_frequent | first }}",
    "{{ [] | most_frequent }} ||| {{ s | most_frequent }}",
    "{{ words | map('string') | most_frequent | join }}",
    "{{ '%s: %s' | format(s, n) }} ||| {{ s | string }}",
    "{{ words | choice }} ||| {{ words | random }}",
    "{{ [s, t] | choice }} ||| {{ ['a', 'b', 'c'] | choice }}{{ range(9) | random }}",
    "{{ s | e }} ||| {{ t | safe }}",
    "{{ s | tojson }} ||| {{ rows | groupby('k') | list }}",
    "{{ s | title }} ||| {{ s | wordcount }}",
    "{{ s | truncate(5) }} ||| {{ s | center(9) }}{{ s | indent }}",
    "{{ s | no_such_filter }}",
    "{{ d | dictsort }} ||| {{ d | items | list }}",
    "{{ words | batch(2) | list }} ||| {{ words | reverse | list }}",
    "{{ s | xmlattr }}",
    "{{ s | urlize }} ||| {{ s | striptags }}",
    # functions and methods
    "{% for i in range(3) %}{{i}}{% endfor %} ||| {{ range(2, 5) | list }}",
    "{% for a, b in zip(words, words) %}{{a}}{{b}}{% endfor %}|||{{ zip }}",
    "{{ s.split() }} ||| {{ s.split(' ')[0] }}{{ s.split('.')[-1] }}",
    "{% set l = [] %}{{ l.append(s) or '' }}{{ l }} ||| {{ words.append('new') }}{{ words }}",
    "{{ s.lower() }} ||| {{ s.index('e') }}",
    "{{ s.replace('e', 'E') }} ||| {{ ', '.join(words) }}",
    "{{ d.update({'z': 1}) or '' }}{{ d }} ||| {{ d.pop('z') }}",
    "{{ words.pop() }} ||| {{ words.pop(0) }}{{ words }}",
    "{{ s.strip() }} ||| {{ s.startswith('S') }}",
    "{{ s.capitalize() }} ||| {{ s.format(1) }}",
    "{{ '{0} {1}'.format(s, n) }} ||| {{ '%d' % n }}",
    "{{ words[1:] }} ||| {{ words[-1] }}{{ words[99] }}",
    "{{ s is string }} ||| {{ n is number }}{{ n in [1, 2] }}",
    "{{ s.encode('utf-8') }} ||| {{ 's' in s }}",
    "{{ n // 2 }} ||| {{ n ** 2 }}{{ n % 2 }}",
    "{{ cycler('a', 'b').next() }} ||| {{ joiner('x')() }}",
    "{{ dict(a=1) }} ||| {{ 10 ** 5 }}{{ 1 / 0 }}",
    "{{ 'é' }}日本 ||| {{ '\\u00e9\\n' }}",
]

CHOICES_TEXTS = [
    ("{{s}} ||| {{answer_choices[n]}}", "no ||| yes ||| maybe"),
    ("{{answer_choices | join(', ')}} ||| {{answer_choices[n - 1]}}", " 1 |||2||| 3 |||"),
    ("{{answer_choices}} ||| {{answer_choices | length}}", ""),
    ("{{answer_choices}} ||| x", "{{ words | join('|||') }}"),
    ("{{s}} ||| {{answer_choices[0]}}", "{{s}} ||| {{t}} ||| {{n}}"),
    ("{{s}} ||| {{answer_choices[0]}}", "{% for w in words %}{{w}}|||{% endfor %}"),
    ("{{s}} ||| {{answer_choices}}", "{{ broken"),
    ("{{s}} ||| {{answer_choices[0]}}", "{{ undefined_name.attribute }}"),
    ("{{s}} ||| {{ answer_choices | choice }}", "a ||| b ||| {{ words | choice }}"),
    ("{{words}} ||| {{answer_choices}}", "{{ words.append('from choices') or 'a' }}"),
    ("{{answer_choices}} ||| {{answer_choices is none}}", None),
    ("{{s}} ||| x", "{{ answer_choices }}"),
    ("{{s}} ||| {{ answer_choices[-1] }}", "\u00a0a\u00a0 ||| \u200bb"),
]


def test_every_construct_on_odd_records_gives_the_reference_parts(reference):
    comparison = Comparison(reference)
    for jinja, choices in [*((text, None) for text in TEXTS), *CHOICES_TEXTS]:
        comparison.add(jinja, choices, ODD_RECORDS)
    assert not comparison.different, comparison.report()
    assert comparison.counts["renders"] > 1000
    assert comparison.counts["strict"] > 100


def files_below(root):
    return sorted(glob.glob(f"{root}/**/templates.yaml", recursive=True))


def compare_files(reference, files, num_records):
    comparison = Comparison(reference)
    num_templates = 0
    for file in files:
        templates = load_templates(file)
        num_templates += len(templates)
        theirs = yaml.load(Path(file).read_text("utf-8"), Loader=yaml.FullLoader)["templates"]
        assert [t.name for t in theirs.values()] == list(templates)
        assert [t.id for t in theirs.values()] == [t.id for t in templates.values()]
        generate = RecordGenerator(templates.values(), seed=len(files))
        for template, other in zip(templates.values(), theirs.values(), strict=True):
            assert (template.jinja, template.answer_choices) == (other.jinja, other.answer_choices)
            records = [generate() for _ in range(num_records)]
            comparison.add(template.jinja, template.answer_choices, records)
    assert not comparison.different, comparison.report()
    print(f"{len(files)} files, {num_templates} templates: {dict(comparison.counts)}")
    return num_templates, comparison.counts


def test_the_shared_files_give_the_reference_parts(reference):
    files = files_below(DATA / "promptsource")
    if not files:
        pytest.skip(f"no template files below {DATA / 'promptsource'}; set IFT_JAX_DATA")
    _, counts = compare_files(reference, files, num_records=100)
    assert counts["renders"] > 5 * counts["fails"]
    assert counts["strict"] > 1000


@pytest.mark.slow
def test_the_whole_public_collection_gives_the_reference_parts(reference, promptsource_root):
    files = files_below(promptsource_root / "promptsource" / "templates")
    num_templates, counts = compare_files(reference, files, num_records=4)
    assert (len(files), num_templates) == (279, 2085)
    assert counts["renders"] > 2 * counts["fails"]
    assert counts["strict"] > 2000


# --- records that suit templates -------------------------------------------------------------


class Shape:
    """What the templates' expressions tell about a value: its fields, items and constants."""

    def __init__(self):
        self.kinds = Counter()
        self.fields = {}
        self.constants = []
        self._item = None

    def field(self, name):
        self.kinds["dict"] += 5
        return self.fields.setdefault(name, Shape())

    @property
    def item(self):
        self.kinds["list"] += 5
        self._item = self._item or Shape()
        return self._item

    def sample(self, rng):
        if self.constants and rng.random() < 0.8:
            return rng.choice(self.constants)
        kinds = {**self.kinds} or {"text": 1}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        match kind:
            case "dict":
                return {name: shape.sample(rng) for name, shape in self.fields.items()}
            case "list":
                item = self._item or Shape()
                return [item.sample(rng) for _ in range(rng.choice((1, 2, 3, 4)))]
            case "int":
                return rng.choice((0, 1, 1, 2, 3))
        words = ["It", "was", "a", "good", "day.", "Élan", "|||", "\n", "(yes)", "it's", "42"]
        num_words = 600 if rng.random() < 0.02 else rng.randrange(1, 9)
        return " ".join(rng.choices(words, k=num_words))


LIST_FILTERS = frozenset(
    ("join", "first", "last", "unique", "map", "selectattr", "sort", "random", "choice", "min")
)
INT_FILTERS = frozenset(("int", "round", "abs", "float"))
TEXT_METHODS = frozenset(
    ("split", "lower", "replace", "strip", "startswith", "capitalize", "index")
)


class RecordGenerator:
    """Records whose values have the types that a file's templates expect."""

    def __init__(self, templates, seed):
        self.rng = random.Random(seed)
        self.columns = {}
        for template in templates:
            for text in (template.jinja, template.answer_choices or ""):
                names = sorted(template.columns)  # records must not depend on the order of a set
                scope = {name: self.columns.setdefault(name, Shape()) for name in names}
                for node in template_worker.make_environment(False).parse(text).body:
                    self._visit(node, scope)

    def __call__(self):
        return {name: shape.sample(self.rng) for name, shape in self.columns.items()}

    def _visit(self, node, scope):
        if isinstance(node, nodes.For):
            shape = self._shape(node.iter, scope)
            if shape and isinstance(node.target, nodes.Name):
                scope = {**scope, node.target.name: shape.item}
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            scope[node.target.name] = self._shape(node.node, scope)
        self._shape(node, scope)
        for child in node.iter_child_nodes():
            self._visit(child, scope)

    def _shape(self, node, scope):
        """The shape that an expression refers to, if it is a part of the record."""
        match node:
            case nodes.Name():
                return scope.get(node.name)
            case nodes.Getitem(node=inner, arg=nodes.Const(value=str(name))):
                shape = self._shape(inner, scope)
                return shape and shape.field(name)
            case nodes.Getitem(node=inner, arg=arg):
                if index := self._shape(arg, scope):
                    if isinstance(inner, nodes.Dict):
                        index.constants += [
                            p.key.value for p in inner.items if hasattr(p.key, "value")
                        ]
                    else:
                        index.kinds["int"] += 10
                shape = self._shape(inner, scope)
                return shape and shape.item
            case nodes.Call(node=nodes.Getattr(node=inner, attr=method)):
                if (shape := self._shape(inner, scope)) and method in TEXT_METHODS:
                    shape.kinds["text"] += 10
            case nodes.Getattr(node=inner, attr=name) if name not in TEXT_METHODS:
                if name in ("append", "pop", "items", "keys", "update", "index"):
                    return None
                shape = self._shape(inner, scope)
                return shape and shape.field(name)
            case nodes.Filter(node=inner, name=name):
                shape = self._shape(inner, scope) if inner else None
                if shape:
                    kind = (
                        "list" if name in LIST_FILTERS else "int" if name in INT_FILTERS else "text"
                    )
                    shape.kinds[kind] += 3
                return shape
            case nodes.Compare(expr=inner, ops=[nodes.Operand(expr=other)]):
                shape = self._shape(inner, scope)
                if shape and isinstance(other, nodes.Const):
                    shape.constants.append(other.value)
                elif shape and isinstance(other, nodes.List):
                    shape.constants += [c.value for c in other.items if isinstance(c, nodes.Const)]
            case nodes.Sub() | nodes.Mul() | nodes.Div() | nodes.FloorDiv() | nodes.Mod():
                for side in (node.left, node.right):
                    if shape := self._shape(side, scope):
                        shape.kinds["int"] += 5
        return None
