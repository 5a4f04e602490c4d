"""What all prompts of a template have in common, found from the prompts themselves."""

from collections.abc import Sequence
from itertools import takewhile

from ift_jax.data.examples import Example
from ift_jax.data.pipeline import TaskData

NEUTRAL = "N/A"  # a text without content (Zhao et al. 2021)


def template_frames(task: TaskData, items: Sequence[Example]) -> dict[str, tuple[str, str]]:
    """The `frame` of each template's prompts, of the training split and the items."""
    prompts: dict[str, list[str]] = {}
    for example in (*task.splits["train"], *items):
        if example.messages:
            prompts.setdefault(example.template, []).append(example.messages[-1]["content"])
    return {template: frame(texts) for template, texts in prompts.items()}


def frame(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin and end with, cut at spaces; ("", "") for fewer than two texts.

    Example:
        >>> frame(["Review: Fine.\\nStars:", "Review: Fair.\\nStars:"])
        ('Review: ', '\\nStars:')
    """
    distinct = sorted(set(texts))
    if len(distinct) < 2:
        return "", ""
    begin = _common_beginning(distinct)
    begin = begin[: max((i + 1 for i, c in enumerate(begin) if c.isspace()), default=0)]
    rests = [text[len(begin) :][::-1] for text in distinct]
    end = _common_beginning(rests)[::-1]
    end = end[min((i for i, c in enumerate(end) if c.isspace()), default=len(end)) :]
    return begin, end


def _common_beginning(texts: Sequence[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def without_frame(text: str, edges: tuple[str, str]) -> str:
    """The part of a prompt that is the item's own.

    Example:
        >>> without_frame("Review: Fine.\\nStars:", ("Review: ", "\\nStars:"))
        'Fine.'
    """
    begin, end = edges
    return text.removeprefix(begin).removesuffix(end)


def neutral_prompt(edges: tuple[str, str]) -> str:
    """A prompt of the template that asks about nothing.

    Example:
        >>> neutral_prompt(("Review: ", "\\nStars:"))
        'Review: N/A\\nStars:'
    """
    return edges[0] + NEUTRAL + edges[1]
