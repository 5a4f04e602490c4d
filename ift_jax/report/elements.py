"""What a page is made of: sections of tables, plots, previews and samples, as text and numbers.

Nothing here is escaped or drawn yet: `page` does the one, `figures` the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

MAX_ROWS = 100  # of one table
MAX_COLOURS = 8  # runs or models in one plot; as many colours can be told apart
MAX_COLUMNS = 20  # runs or models side by side in a table
MAX_POINTS = 150  # of one curve
MAX_FIGURES = 12  # of one section


class Table(NamedTuple):
    """A table whose first column names the rows.

    Attributes:
        shades: for each row the share, 0 to 1, that colours each cell behind the first; () for
            none.
        notes: lines under it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    shades: Sequence[Sequence[float]] = ()


class Curve(NamedTuple):
    """Points joined by a line.

    Attributes:
        low, high: bounds of a band around it; () for none.
        colour: a number; equal ones are the same thing in other plots.
        style: "bold" with markers, "thin", or "dashed" for what does not depend on x.
        label: stands at its end; "" for none.
        names: text beside each point; () for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0
    style: str = "bold"
    names: Sequence[str] = ()


class Lines(NamedTuple):
    """Curves over one x axis.

    Attributes:
        name: of its files; the page numbers it, so that names differ.
        alt: what one sees, in words.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    alt: str
    log_x: bool = False


class Dot(NamedTuple):
    """A value with its interval; without one, low = high = value."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 0


class Whiskers(NamedTuple):
    """Values with intervals, one below the other.

    Attributes:
        reach: the ends of the x axis; () for those of the values.
    """

    name: str
    title: str
    x_label: str
    dots: Sequence[Dot]
    alt: str
    reach: Sequence[float] = ()


Plot = Lines | Whiskers


class Preview(NamedTuple):
    """A training example: runs of tokens, trained or not."""

    title: str
    runs: Sequence[tuple[bool, Sequence[str]]]


class Sample(NamedTuple):
    """A prompt, its reference, and (who answered, what) side by side."""

    title: str
    prompt: str
    reference: str
    answers: Sequence[tuple[str, str]]


class Section(NamedTuple):
    """A part of the page. One without content is left out, but for its notes.

    Attributes:
        findings: (question, answer).
    """

    anchor: str
    title: str
    intro: str = ""
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    previews: Sequence[Preview] = ()
    samples: Sequence[Sample] = ()
    findings: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def and_more(total: int, shown: int, what: str) -> list[str]:
    """The note that something was cut, or none.

    Example:
        >>> and_more(12, 8, "workdirs"), and_more(3, 8, "workdirs")
        (['and 4 more workdirs'], [])
    """
    return [f"and {total - shown:,} more {what}"] if total > shown else []


def cut(text: str, most: int) -> str:
    """A text's beginning, and how much is left out.

    Example:
        >>> cut("abcdef", 4)
        'abcd … and 2 more characters'
    """
    if len(text) <= most:
        return text
    return f"{text[:most]} … and {len(text) - most:,} more characters"
