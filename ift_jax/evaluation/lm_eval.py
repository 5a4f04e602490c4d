"""python -m ift_jax.evaluation.lm_eval --model_args path=W --tasks ...: our models in lm_eval.

Registers the model type "ift_jax" with the Language Model Evaluation Harness and hands everything
over to its own command line, so its tasks, flags and outputs are as its documentation says.
Model arguments:

    path                  as for `ift evaluate --model`
    dtype, param_dtype    of computation and of parameters; float32
    max_length            context in tokens; default: the model's
    fsdp, tensor          mesh axes, as in config.mesh; 1
    seed                  of sampled generations; 0

What a task does not say of temperature, top_k, top_p and repetition_penalty is as with lm_eval's
own models: what the model's generation_config.json says, and else transformers' defaults. Nothing
else in that file counts but end tokens.

lm_eval's flags --device and --batch_size are for its own models: JAX takes the devices that it
finds (JAX_PLATFORMS chooses), and batches are cut by length.
"""

import sys
from collections.abc import Sequence

from ift_jax.errors import InputError, one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs lm_eval's command line with our model as the default one."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            from lm_eval.__main__ import cli_evaluate

            from ift_jax.evaluation.lm_eval_model import NAME
        except ModuleNotFoundError as error:
            raise InputError(
                f'lm_eval cannot be used ({error}); run `pip install "ift_jax[eval]"`'
            ) from error
        from ift_jax.compilation import enable_compilation_cache

        enable_compilation_cache()
        if not arguments or arguments[0] not in ("ls", "validate", "-h", "--help"):
            arguments = ["run", "--model", NAME, *arguments[arguments[:1] == ["run"] :]]
        sys.argv = ["lm_eval", *arguments]  # the only place where it looks for them
        cli_evaluate()
    except InputError as error:
        sys.exit(f"lm_eval: {one_line(error)}")


if __name__ == "__main__":
    main()
