"""ift study --config=C --workdir=W: the whole comparison, from one config.

Scores the base model at each number of evaluation.shots, makes and scores every run of the
config's section `study`, each in a workdir under W/runs, and says whether prompting helps, how
many examples suffice, what was forgotten, and what helped against it. Run again on the same W,
it goes on exactly where it stopped. Its last file is W/report.html, a page of all of it.
"""

from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import define_config_flag, required, run_config

_CONFIG = define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the study; made if it does not exist.")


def main(_: list[str]) -> None:
    """Runs the verb."""
    config = run_config(_CONFIG)
    workdir = Path(required(_WORKDIR, "workdir")).expanduser()
    from ift_jax.study.runs import study

    study(config, workdir)
