"""No template reads, hangs, crashes or fills the process that uses it, whatever it says."""

import contextlib
import copy
import datetime
import decimal
import encodings.aliases
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from ift_jax.data import template_sandbox, template_worker
from ift_jax.data.template_sandbox import Failure, Renderer, Success, render_records
from ift_jax.data.templates import Rendered, Template
from ift_jax.errors import InputError

NESTED_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}X{% endfor %}{% endfor %}"
HOSTILE = {
    # the way to the interpreter
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') | attr('__mro__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "function globals": "{{ lipsum.__globals__['os'].system('echo taken') }}",
    "method globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "self": "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(s) }}",
    "format_map": "{{ '{s.__class__.__mro__}'.format_map({'s': s}) }}",
    "indirect format": "{{ ['{0.__class__.__mro__}'] | map('format', s) | list }}",
    "stored format": "{% set f = '{0.__class__.__mro__}'.format %}{{ f(s) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.getcwd() }}",
    "frames": "{% set g = range(3) | map('string') %}{{ g.gi_frame.f_back.f_globals }}",
    # time
    "nested loops": NESTED_LOOPS.replace("X", ""),
    "power": "{{ 10 ** (10 ** 8) }}",
    "power at run time": "{{ n ** (n ** 8) }}",
    "huge range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "sum": "{{ range(10 ** 12) | sum }}",
    "namespace loop": "{% set ns = namespace(i=0) %}{% for a in range(10 ** 9) %}"
    "{% set ns.i = ns.i + a %}{% endfor %}{{ ns.i }}",
    "search": "{{ ('a' * 10 ** 6) in ('a' * (10 ** 6 - 1) + 'b') * 9 }}{{ s in range(10 ** 10) }}",
    "int to text": "{{ (10 ** (10 ** 7)) | string }}",
    "shift": "{{ 1 * 2 ** (10 ** 11) }}",
    "wordwrap": "{{ ('a ' * 10 ** 7) | wordwrap(1) | length }}",
    "urlize": "{{ ('a@' * 10 ** 7) | urlize | length }}",
    "striptags": "{{ ('<' * 10 ** 7) | striptags | length }}",
    "iterate forever": "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}",
    "cycler": "{% set c = cycler(*range(10 ** 9)) %}{{ c.next() }}",
    "lipsum": "{{ lipsum(n=10 ** 9) }}",
    # memory
    "repeat": "{{ 'a' * 10 ** 10 }}",
    "repeat list": "{{ ([0] * 10 ** 10) | length }}",
    "list of range": "{{ range(10 ** 12) | list }}",
    "printed loops": NESTED_LOOPS.replace("X", "aaaaaaaaaaaaaaaa"),
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "ljust": "{{ s.ljust(10 ** 10) }}",
    "center": "{{ s.center(10 ** 10) }}{{ s | center(10 ** 10) }}",
    "zfill": "{{ s.zfill(10 ** 10) }}",
    "indent": "{{ s | indent(10 ** 10, true) }}",
    "replace": "{{ ('a' * 10 ** 5).replace('a', 'b' * 10 ** 5) }}",
    "replace filter": "{{ ('a' * 10 ** 5) | replace('a', 'b' * 10 ** 5) }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 10) }}",
    "translate": "{{ ('a' * 10 ** 5).translate({97: 'b' * 10 ** 5}) }}",
    "joins": "{% set a = range(5000) | join %}{% set b = range(5000) | join(a) %}{{ b | length }}",
    "extend": "{% set l = [0] %}{% for i in range(99) %}{{ l.extend(l) or '' }}{% endfor %}{{ l }}",
    "doubling": "{% set ns = namespace(t='ab') %}{% for i in range(99) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 10) | list | length }}",
    "self-containing": "{% set l = [] %}{% for i in range(60) %}{% set _ = l.append([l, l] + l) %}"
    "{% endfor %}{{ l | length }}",
    "filling a record": "{% for i in range(10 ** 9) %}{{ words.append('word' * i) or '' }}"
    "{% endfor %}",
    "bytes": "{{ 1 .to_bytes(10 ** 10, 'big') }}",
    # the stack
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "branching recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "deep list": "{% set ns = namespace(l=[]) %}{% for i in range(10 ** 5) %}"
    "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep sum": "{{ " + "1+" * 5000 + "1 }}",
}

MEASURE = """
import json, resource, sys, time
from ift_jax.data.templates import Template
record = {"s": "text", "n": 10, "words": ["a"]}
Template("warm", "a ||| b").render(record)
rows = {}
for name, jinja in json.load(sys.stdin).items():
    start = time.perf_counter()
    template = Template(name, jinja + " ||| x", "{{ s }}")
    results = template.render_batch([record])
    try:
        results.append(template.apply(record))
    except ValueError as error:
        results.append(error)
    rows[name] = [(time.perf_counter() - start) / 2, *(getattr(r, "reason", "") for r in results)]
    rows[name] += [str(result)[:200] for result in results]
assert Template("after", "a ||| {{ s }}").render(record).completion == "text"
assert not {"jax", "numpy", "ift_jax.language_model"} & set(sys.modules)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"rows": rows, "peak_bytes": peak * 1024}))
"""


@pytest.mark.slow
def test_every_hostile_template_is_stopped_within_two_seconds_and_200_mb():
    result = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    for name, (seconds, strict, compatible, *texts) in measured["rows"].items():
        assert seconds < 2 * max(1, os.getloadavg()[0]), name  # wall time, on a shared machine
        assert strict, (name, texts)
        # Compatible mode prints nothing for what the sandbox hides, as for anything undefined.
        assert compatible or not any(word in texts[1] for word in ("class", "root:", "uid=")), name
    assert measured["peak_bytes"] < 200e6
    times = sorted(((row[0], name) for name, row in measured["rows"].items()), reverse=True)
    print(f"{len(times)} hostile templates; slowest {times[:3]}; {measured['peak_bytes']:,} bytes")


@pytest.mark.parametrize("name", ["nested loops", "power", "repeat", "doubling", "deep list"])
def test_hostile_answer_choices_are_stopped_too(name):
    record = {"s": "text", "n": 10}
    (result,) = Template("t", "{{ s }} ||| {{ s }}", HOSTILE[name]).render_batch([record])
    assert result.reason in ("timeout", "too_large", "template_error", "undefined_column")


def test_looking_at_a_hostile_template_computes_nothing():
    start = time.perf_counter()
    for jinja in HOSTILE.values():
        with contextlib.suppress(InputError):  # nested too deeply
            assert Template("t", jinja).columns <= {"s", "n", "words", "os"}
    assert time.perf_counter() - start < 5


SLOW_IF_ASKED = "{{ s }} ||| {% if slow %}{{ 10 ** (n ** 8) }}{% endif %}{{ s }}"


def test_a_slow_record_costs_only_its_own_place():
    slow_at = {3, 600}
    records = [{"s": str(i), "slow": i in slow_at, "n": 10} for i in range(1000)]
    results = Template("t", SLOW_IF_ASKED).render_batch(records)
    for i, result in enumerate(results):
        if i in slow_at:
            assert result.reason == "timeout"
        else:
            assert result == Rendered(str(i), str(i), None)


def test_a_template_that_keeps_running_out_of_time_is_given_up():
    records = [{"s": "a", "slow": i >= 5, "n": 10} for i in range(2000)]
    start = time.perf_counter()
    results = Template("t", SLOW_IF_ASKED).render_batch(records)
    assert time.perf_counter() - start < 10 * max(1, os.getloadavg()[0])  # a shared machine
    assert [isinstance(result, Rendered) for result in results[:6]] == [True] * 5 + [False]
    assert {result.reason for result in results[5:]} == {"timeout"}
    assert "not tried" in str(results[-1])
    assert "not tried" not in str(results[7])


def test_a_template_that_runs_out_of_time_now_and_then_is_given_up_too(monkeypatch):
    monkeypatch.setattr(template_sandbox, "MAX_TIMEOUTS", 3)
    records = [{"s": str(i), "slow": i % 3 > 0, "n": 10} for i in range(600)]
    template, timeouts, results = Template("t", SLOW_IF_ASKED), Counter(), []
    for part in (records[:4], records[4:300], records[300:]):
        results += template.render_batch(part, timeouts=timeouts)
    assert list(timeouts.values()) == [3]
    tried = [getattr(result, "reason", "") for result in results[:5]]
    assert tried == ["", "timeout", "timeout", "", "timeout"]
    assert "not tried" not in str(results[4])
    for result in results[5:]:
        assert result.reason == "timeout"
        assert "not tried: 3 records ran out of time" in str(result)
    # Neither another template nor another build pays for it.
    other = Template("t", SLOW_IF_ASKED + "!")
    assert isinstance(other.render_batch(records[:1], timeouts=timeouts)[0], Rendered)
    assert isinstance(template.render_batch(records[:1])[0], Rendered)


def test_records_and_results_too_large_are_rejected_and_the_next_is_rendered():
    huge = "x" * (template_sandbox.MAX_RECORD_BYTES + 1)
    large = "x" * (template_worker.MAX_OUTPUT_CHARS // 2)
    template = Template("t", "{{ s }}{{ s }} ||| a")
    results = template.render_batch([{"s": huge}, {"s": large + "x"}, {"s": "fits"}])
    assert [getattr(result, "reason", None) for result in results] == ["too_large"] * 2 + [None]


def test_long_results_are_kept_no_longer_than_asked_so_that_many_fit_memory():
    """Of 200 MB that are rendered, what is of no use is let go as it comes."""
    template = Template(name="long", jinja="{{ s }} {{ 'ab ' * 330000 }} ! ||| {{ 'c' * 9000 }}")
    records = [{"s": f"first {n}"} for n in range(200)]
    tracemalloc.start()
    rendered = template.render_batch(records, max_chars=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    for n, one in enumerate(rendered):
        assert one.prompt.startswith(f"first {n} ab ab ")
        assert one.prompt.endswith(" ab  !")
        # Longer than is allowed, so that whoever asked sees that it was too long.
        assert 1000 < len(one.prompt) < 1010
        assert 1000 < len(one.completion) < 1010
    assert len(template.render_batch(records[:1])[0].completion) == 9000
    many = Template(name="many", jinja="{{ s }} ||| 1", answer_choices="|||".join("1" * 5000))
    [rejection] = many.render_batch(records[:1], max_chars=1000)
    assert rejection.reason == "too_large"
    assert isinstance(many.render_batch(records[:1], max_chars=2000)[0], Rendered)


def test_what_a_template_changes_in_one_record_is_not_seen_in_another_nor_here():
    shared = ["a"]
    records = [{"words": shared}, {"words": shared}]
    template = Template("t", "{{ words.append('b') or words | join }} ||| {{ words | join }}")
    assert [result.prompt for result in template.render_batch(records)] == ["ab", "ab"]
    assert shared == ["a"]


def test_the_worker_can_neither_open_files_nor_start_processes_nor_see_the_environment():
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(template_worker.__file__).parent)!r})
        import template_worker
        template_worker.confine()
        for action in (lambda: open("/etc/passwd"), os.fork, os.pipe):
            try:
                action()
            except OSError:
                print("refused")
        try:
            bytearray(10**9)
        except MemoryError:
            print("refused")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert output.count("refused") >= (3 if os.geteuid() == 0 else 4)  # root may always fork


VALUES = {
    "s": "some Text, a@b.org http://x.org/é and <i>more</i> words",
    "b": b"by te",
    "words": ["b", "a"],
    "moment": datetime.datetime(2020, 1, 2, 3, 4, tzinfo=datetime.UTC),
    "price": decimal.Decimal("1234.50"),
}  # fmt: skip


def outside(jinja, record):
    """What the template gives in this process, which may open any file."""
    try:
        return template_worker.render(jinja, None, False, copy.deepcopy(record))[0]
    except Exception:
        return "fails"


def compare_with_outside(sources, record):
    """How many of the templates render; each must do the same in the worker and out of it."""
    num_rendered = 0
    for jinja in sources:
        [reply] = render_records(jinja, None, False, [record])
        inside = reply.parts if isinstance(reply, Success) else "fails"
        expected = outside(jinja, record)
        num_rendered += expected != "fails"
        addresses = re.compile(r"0x[0-9a-f]+")
        assert addresses.sub("", str(inside)) == addresses.sub("", str(expected)), (jinja, reply)
    return num_rendered


def test_every_filter_does_in_the_worker_what_it_does_outside():
    sources = [
        f"{{{{ {value} | {name}({arguments}) }}}}"
        for name in template_worker.make_environment(strict=False).filters
        for value in ("s", "words")
        for arguments in ("", "1", "'a'")
    ]
    assert "{{ s | wordwrap() }}" in sources
    assert compare_with_outside(sources, VALUES) > 100


@pytest.mark.parametrize("column", ["s", "b", "moment", "price"])
def test_every_method_of_a_value_does_in_the_worker_what_it_does_outside(column):
    clocks = ("now", "today", "utcnow")
    methods = [n for n in dir(VALUES[column]) if not n.startswith("_") and n not in clocks]
    arguments = ("", "1", "b", "'%A %p'", "'%d', '%d'")
    sources = [f"{{{{ {column}.{name}({given}) }}}}" for name in methods for given in arguments]
    assert compare_with_outside(sources, VALUES) > len(methods) / 2


def test_every_encoding_is_known_in_the_worker():
    assert outside("{{ 'é'.encode('cp1252') }}", {}) == [r"b'\xe9'"]
    names = sorted({*encodings.aliases.aliases.values(), "cp737", "idna", "punycode", "utf_8_sig"})
    sources = [
        f"{{{{ 'text'.encode({name!r}) }}}}{{{{ 'text'.encode({name!r}).decode({name!r}) }}}}"
        for name in names
    ]
    assert compare_with_outside(sources, {}) > 90
    escapes = ["{{ '\\N{BULLET}' }}", "{{ 'é'.encode('ascii', 'namereplace') }}"]
    assert compare_with_outside(escapes, {}) == 2


def test_the_worker_gets_none_of_the_parents_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    renderer = Renderer()
    renderer.render(("a", None, True), [{}])
    environment = Path(f"/proc/{renderer._worker.process.pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc")
    assert b"secret" not in environment.read_bytes()
    renderer.close()


@pytest.mark.parametrize(
    "reply",
    [b"", b"no json\n", b"{}\n", b'[null, "a", null]\n', b"[null, [1], null]\n", b"[1, 2]\n"],
)
def test_a_worker_that_was_taken_over_can_only_spoil_its_record(reply, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\n"
        "os.write(1, b'ready\\n')\nsys.stdin.buffer.read(9)\n"
        f"os.write(1, {reply!r})\n"
    )
    monkeypatch.setattr(template_worker, "__file__", str(script))
    renderer = Renderer()
    (result,) = renderer.render(("a", None, True), [{}])
    assert result.reason == "template_error"
    renderer.close()


def test_pickles_from_a_worker_are_not_loaded():
    with pytest.raises(ValueError):
        template_sandbox._parse(pickle.dumps(["anything"]) + b"\n")


def test_a_worker_killed_from_outside_loses_no_record():
    renderer = Renderer()
    source = ("{{ s }}", None, True)
    assert renderer.render(source, [{"s": 1}]) == [Success(["1"], None)]
    renderer._worker.process.kill()
    renderer._worker.process.wait()
    assert renderer.render(source, [{"s": 2}]) == [Success(["2"], None)]
    killer = threading.Timer(0.1, renderer._worker.process.send_signal, [signal.SIGKILL])
    killer.start()
    replies = renderer.render(source, [{"s": i} for i in range(30_000)])
    killer.join()
    assert replies == [Success([str(i)], None) for i in range(30_000)]
    renderer.close()


def test_after_an_interrupt_the_next_call_gets_its_own_replies(monkeypatch):
    renderer = Renderer()
    source = ("{{ s }}", None, True)
    renderer.render(source, [{"s": 0}])
    with monkeypatch.context() as patch:
        patch.setattr(
            template_sandbox, "_parse", lambda line: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            renderer.render(source, [{"s": 1}, {"s": 2}])
    assert renderer.render(source, [{"s": 3}]) == [Success(["3"], None)]
    renderer.close()


def test_threads_share_the_worker():
    results = {}

    def work(name):
        records = [{"s": f"{name} {i}"} for i in range(300)]
        results[name] = render_records("{{ s }}", None, True, records) == [
            Success([record["s"]], None) for record in records
        ]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(8), True)


IN_OTHER_PROCESSES = """
import multiprocessing, os
from ift_jax.data.templates import Template
template = Template("t", "{{ s }} ||| {{ s }}")

def work(i):
    return template.render({"s": i}).prompt

if __name__ == "__main__":
    assert work(0) == "0"
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(work, range(20)) == [str(i) for i in range(20)], method
    if os.fork() == 0:
        assert work(7) == "7"
        raise SystemExit  # with the exit handlers, which must leave the parent's worker alone
    os.wait()
    assert work(1) == "1"
    print("same in all")
"""


def test_spawned_and_forked_processes_have_workers_of_their_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_OTHER_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", script],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert result.stdout == "same in all\n", result.stderr
    assert "Error" not in result.stderr


def test_values_that_are_not_plain_are_sent_as_what_they_hold():
    numpy = pytest.importorskip("numpy")
    record = {
        "a": numpy.int64(3),
        "b": numpy.float32(0.5),
        "c": numpy.arange(2),
        "d": numpy.str_("x"),
    }
    (reply,) = render_records("{{ a }} {{ b }} {{ c }} {{ d }}", None, True, [record])
    assert reply == Success(["3 0.5 [0, 1] x"], None)
    (reply,) = render_records("a", None, True, [{"a": lambda: 1}])
    assert isinstance(reply, Failure)
    assert reply.reason == "template_error"


def test_points_in_time_of_columnar_files_are_sent_whatever_their_zone_and_precision(tmp_path):
    pa = pytest.importorskip("pyarrow")
    noon = datetime.datetime(2024, 1, 2, 12, 0, 0, 5, tzinfo=datetime.UTC)
    columns = {
        "utc": pa.array([noon], pa.timestamp("us", tz="UTC")),
        "york": pa.array([noon], pa.timestamp("us", tz="America/New_York")),
        "fine": pa.array([datetime.datetime(2024, 1, 2)], pa.timestamp("ns")),
        "took": pa.array([datetime.timedelta(minutes=3)], pa.duration("ns")),
    }
    [record] = pa.table(columns).to_pylist()
    shown = "{{ utc }}; {{ york }} {{ york.tzname() }}; {{ fine.year }}; {{ took }}"
    (reply,) = render_records(shown, None, True, [record])
    expected = "2024-01-02 12:00:00.000005+00:00; 2024-01-02 07:00:00.000005-05:00 EST; 2024; "
    assert reply == Success([f"{expected}0:03:00"], None)
    pandas = pytest.importorskip("pandas")
    (reply,) = render_records("{{ at is none }}", None, False, [{"at": pandas.NaT}])
    assert reply == Success(["True"], None)
