"""docs/config.md explains every field of a config as it is now."""

import re
import runpy

from conftest import ROOT

SCRIPT = ROOT / "scripts" / "config_reference.py"


def test_the_page_is_what_the_docstrings_say():
    written = runpy.run_path(str(SCRIPT))
    page = written["FILE"].read_text()
    assert page == written["reference"](), f"run `python {SCRIPT.relative_to(ROOT)}`"
    assert "## `config.data.tasks[i]`" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "| `eval_every` | `0` | steps between validations; 0 validates at the" in page
