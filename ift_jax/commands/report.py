"""ift report --workdirs=W1,W2 --output=report.html: one self-contained page about runs.

Shows workdirs of `ift train` and folders of `ift study` side by side. With --figures=DIR, each
figure of the page is also written as SVG and PNG. Figures need `pip install "ift_jax[report]"`.
"""

from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import required, writable
from ift_jax.errors import InputError

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Folders of runs or studies, separated by commas.")
_OUTPUT = flags.DEFINE_string("output", "", "File for the page.")
_FIGURES = flags.DEFINE_string("figures", "", "Folder for the figures as SVG and PNG files.")


def main(_: list[str]) -> None:
    """Runs the verb."""
    folders = [Path(folder).expanduser() for folder in _WORKDIRS.value if folder]
    if not folders:
        raise InputError("--workdirs: is missing; name one or more folders, such as runs/a,runs/b")
    output = writable(required(_OUTPUT, "output"))
    figures = Path(_FIGURES.value).expanduser() if _FIGURES.value else None
    from ift_jax.report.page import write_report

    report = write_report(folders, output, figures)
    for note in report.notes:
        print(note)
    if report.figures:
        print(f"wrote {len(report.figures)} files to {figures}")
    print(f"wrote {output}")
