"""ift train --config=C --workdir=W: trains, scores on the test split, writes the workdir.

Run again on the same workdir, it goes on exactly where it stopped.
"""

from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import define_config_flag, required, run_config

_CONFIG = define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; made if it does not exist.")


def main(_: list[str]) -> None:
    """Runs the verb."""
    config = run_config(_CONFIG)
    workdir = Path(required(_WORKDIR, "workdir")).expanduser()
    from ift_jax.train.run import train

    train(config, workdir)
