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


def one_line(error: Exception) -> str:
    """The text of an error, on one line.

    Example:
        >>> one_line(KeyError("no such key:\\n  'a'"))
        "no such key: 'a'"
    """
    # A KeyError shows the repr of what it was made with.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())
