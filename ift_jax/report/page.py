"""The report: every section of all runs in one self-contained HTML page."""

import functools
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import ift_jax
from ift_jax.data.files import replace_text
from ift_jax.report.curves import costs_section, training_section
from ift_jax.report.elements import Plot, Section
from ift_jax.report.figures import can_draw, page_svg, save_figures
from ift_jax.report.forgetting import forgetting_section
from ift_jax.report.inputs import Run, read_runs
from ift_jax.report.inspected import (
    data_section,
    findings_section,
    overview_section,
    preview_section,
    samples_section,
    settings_section,
)
from ift_jax.report.mixing import mixing_section
from ift_jax.report.palette import ROLES
from ift_jax.report.rows import all_rows
from ift_jax.report.scores import parts_section, scores_section
from ift_jax.report.sizes import sizes_section

WITHOUT_FIGURES = (
    "Figures are left out, since matplotlib is not installed: "
    '`pip install "ift_jax[report]"`, then make the report anew with `ift report`.'
)

# What a missing file leaves out, by section.
_FILES = {
    "scores": "results.json",
    "training": "metrics.jsonl",
    "data": "data/card.json",
    "previews": "data/preview.jsonl",
    "samples": "samples.jsonl",
    "costs": "metrics.jsonl",
}


class Report(NamedTuple):
    """What was written: the page, figure files, and what a user should know."""

    page: Path
    figures: Sequence[Path] = ()
    notes: Sequence[str] = ()


def write_report(folders: Sequence[Path], output: Path, figures: Path | None = None) -> Report:
    """Writes the page of workdirs and studies, and the files of its figures where asked for.

    Raises:
        InputError: naming the file and the line or field, for what cannot be read; if figure files
            are asked for and matplotlib is not installed.
    """
    runs = read_runs(list(folders))
    sections = page_sections(runs)
    written = save_figures(all_plots(sections), figures) if figures else []
    replace_text(output, render(sections, [run.name for run in runs[: len(folders)]]))
    return Report(output, written, [] if can_draw() else [WITHOUT_FIGURES])


def leave_report(workdir: Path) -> None:
    """Writes a workdir's own report.html, and says where it is and what it lacks."""
    report = write_report([workdir], workdir / "report.html")
    for note in (*report.notes, f"report: {report.page}"):
        print(note, file=sys.stderr)


def page_sections(runs: Sequence[Run]) -> list[Section]:
    """The sections of the page in order, those without any content left out."""
    rows = all_rows(runs)
    targets = {run.results.get("target", "") for run in runs if run.is_study}
    sections = [
        findings_section(runs),
        overview_section(runs),
        scores_section(rows),
        forgetting_section(runs),
        sizes_section(rows, targets - {""}),
        mixing_section(runs),
        training_section(runs),
        parts_section(rows),
        samples_section(runs),
        preview_section(runs),
        data_section(runs),
        costs_section(runs),
        settings_section(runs),
    ]
    told = [_with_missing(section, runs) for section in sections]
    return _numbered([section for section in told if _has_content(section) or section.notes])


def _numbered(sections: Sequence[Section]) -> list[Section]:
    """The sections with names of plots that are fit for files and ids, and differ."""
    numbers = itertools.count(1)

    def named(plot: Plot) -> Plot:
        return plot._replace(name=f"{next(numbers):02}_{re.sub(r'[^a-zA-Z0-9]+', '_', plot.name)}")

    return [section._replace(plots=[named(plot) for plot in section.plots]) for section in sections]


def _with_missing(section: Section, runs: Sequence[Run]) -> Section:
    """A section that says which runs lack its file."""
    file = _FILES.get(section.anchor, "")
    complete = _has_content(section)
    # A study has these files in its runs, if anywhere.
    lacking = [run.name for run in runs if file in run.missing and not (complete and run.is_study)]
    if not lacking:
        return section
    who = f" in {', '.join(lacking[:8])}" + (" and others" if lacking[8:] else "")
    what = "Incomplete" if complete else "Left out"
    return section._replace(notes=[*section.notes, f"{what}: there is no {file}{who}."])


def _has_content(section: Section) -> bool:
    return any(section[3:-1])


def all_plots(sections: Sequence[Section]) -> list[Plot]:
    """The plots of all sections."""
    return [plot for section in sections for plot in section.plots]


def render(sections: Sequence[Section], names: Sequence[str]) -> str:
    """The page as HTML. All text is escaped; it needs no other file and runs no script."""
    drawn = {}
    if can_draw():
        drawn = {plot.name: Markup(page_svg(plot)) for plot in all_plots(sections)}
    template = _environment().get_template("page.html.j2")
    return template.render(
        sections=sections,
        names=names,
        drawn=drawn,
        without_figures="" if drawn or not all_plots(sections) else WITHOUT_FIGURES,
        roles=ROLES,
        version=ift_jax.__version__,
    )


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ift_jax", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
