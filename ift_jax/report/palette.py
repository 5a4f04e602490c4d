"""Colours by what they are for, light and dark: of the page's style sheet and of the figures."""

from typing import NamedTuple


class Shade(NamedTuple):
    """A colour on a light and on a dark ground."""

    light: str
    dark: str


# Series after Okabe and Ito (2008, "Color Universal Design"), which people with any colour vision
# tell apart; darkened and lightened until text in them can be read (4.5:1, WCAG 2.2).
SERIES = (
    Shade("#0068a8", "#62b5ec"),
    Shade("#b84a00", "#ff9f5c"),
    Shade("#007a59", "#45d0a3"),
    Shade("#9c3f78", "#ef9fcd"),
    Shade("#7d6000", "#e3c343"),
    Shade("#5b4fc4", "#b3aaff"),
    Shade("#2b7a8c", "#7ad7e8"),
    Shade("#8c3b3b", "#f59a9a"),
)
ROLES = {
    "paper": Shade("#ffffff", "#14181d"),
    "raised": Shade("#f4f6f8", "#1e242b"),
    "ink": Shade("#1c2126", "#e8ebee"),
    "muted": Shade("#58616b", "#a4adb7"),
    "rule": Shade("#d5dbe1", "#37414b"),
    "mark": Shade("#ffe9a8", "#574708"),
    **{f"series-{number}": shade for number, shade in enumerate(SERIES)},
}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance).

    Example:
        >>> round(contrast("#000000", "#ffffff"), 1)
        21.0
    """
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
