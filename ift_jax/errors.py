"""The one error type for what a user can mend: a file, a field, a record, a template."""


class InputError(ValueError):
    """Input that cannot be used. The message is one line: where, what came, what to do.

    `python -m ift_jax` prints the message alone and exits with status 1; every other
    exception is a defect of ours and keeps its traceback.

    Example:
        >>> raise InputError("reviews.jsonl: no such file")
        Traceback (most recent call last):
            ...
        ift_jax.errors.InputError: reviews.jsonl: no such file
    """
