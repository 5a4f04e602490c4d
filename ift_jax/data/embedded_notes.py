"""Neutral text: short notes on cooking, paths, weather, gardens, machines and places, no download.

No embedded task is made of them, so how far a tuned model has moved from its base on them tells
what the tuning did beside its task. The notes are put together by a seeded generator; all wording
was written for this project.
"""

import functools
from typing import Any

from ift_jax.data.embedded_reviews import Draw

NUM_RECORDS = 600
SEED = 20261126
SENTENCES = 4

# A subject's sentences, and what their slots hold.
SUBJECTS: tuple[tuple[tuple[str, ...], dict[str, tuple[str, ...]]], ...] = (
    (
        (
            "Wash the {plant} and cut it into {shape}.",
            "Heat two spoons of {fat} in a {vessel}.",
            "Let it cook for {minutes} minutes over a low flame.",
            "Add {spice} and a little salt before the water boils.",
            "While it rests, slice the bread and lay the table.",
            "Those who like it milder leave out the {spice}.",
            "Stir until the {plant} is soft but not brown.",
            "The dish keeps in a cool place until the next day.",
        ),
        {
            "plant": ("pumpkin", "fennel", "cabbage", "leek", "spinach", "celery"),
            "shape": ("cubes", "thin rings", "strips", "quarters"),
            "fat": ("butter", "olive oil", "lard", "sunflower oil"),
            "vessel": ("heavy pot", "wide pan", "copper kettle"),
            "minutes": ("ten", "fifteen", "twenty", "forty"),
            "spice": ("nutmeg", "caraway", "pepper", "thyme", "paprika"),
        },
    ),
    (
        (
            "The path begins behind the {house} and climbs to the {side}.",
            "After the second bridge, keep to the {side}.",
            "From the {top} one sees as far as the {water}.",
            "The walk takes about {hours} hours there and back.",
            "In spring the lower meadows are often under water.",
            "A stone marks the place where the old road turned {side}.",
            "Carry something to drink, for there is no well before the {top}.",
            "The last part goes down through a forest of {tree}.",
        ),
        {
            "house": ("mill", "church", "station", "sawmill", "post office"),
            "side": ("left", "right", "north", "south"),
            "top": ("ridge", "pass", "tower", "summit"),
            "water": ("lake", "sea", "river", "reservoir"),
            "hours": ("two", "three", "four", "five"),
            "tree": ("beech", "pine", "oak", "larch"),
        },
    ),
    (
        (
            "In the morning there is {sky} over the {land}.",
            "The wind comes from the {wind} and grows stronger towards evening.",
            "Temperatures reach {degrees} degrees in the valleys.",
            "Above a thousand metres the first {fall} is expected.",
            "On the coast the {sky} lasts until noon.",
            "The night stays clear, with frost in the hollows of the {land}.",
            "Rivers have risen by a hand's breadth since {day}.",
            "From {day} on it will be dry for some days.",
        ),
        {
            "sky": ("fog", "a thin haze", "low cloud", "bright sunshine"),
            "land": ("plain", "hills", "islands", "moor"),
            "wind": ("west", "north-east", "south", "east"),
            "degrees": ("four", "eleven", "nineteen", "twenty-six"),
            "fall": ("snow", "sleet", "hail", "rain"),
            "day": ("Monday", "Wednesday", "Friday", "Sunday"),
        },
    ),
    (
        (
            "{flower} want a {soil} soil and half a day of sun.",
            "Sow them in {month}, a thumb apart, and cover them with {cover}.",
            "Water in the evening, and never on the leaves.",
            "When the shoots are as long as a finger, thin them out.",
            "Slugs are kept off by a ring of {cover}.",
            "In the second year {flower} bloom until {month}.",
            "Cut back what has withered before the frost comes.",
            "A {soil} bed warms up later and stays wet for longer.",
        ),
        {
            "flower": ("Poppies", "Asters", "Marigolds", "Lupins", "Dahlias", "Foxgloves"),
            "soil": ("sandy", "heavy", "chalky", "loose"),
            "month": ("March", "April", "May", "September", "October"),
            "cover": ("straw", "ash", "sand", "leaves"),
        },
    ),
    (
        (
            "The {part} turns {times} times while the wheel turns once.",
            "A {metal} rod carries the motion to the {part}.",
            "If the {part} grows hot, stop the engine and let it cool.",
            "Oil is filled in from above until it reaches the {mark}.",
            "The older model had a {part} of {metal}, which wore out sooner.",
            "Two screws hold the lid; they are loosened half a turn.",
            "Pressure is read from the gauge beside the {mark}.",
            "Every {times} months the belt has to be tightened.",
        ),
        {
            "part": ("shaft", "pump", "piston", "gear", "valve"),
            "times": ("three", "six", "eight", "twelve"),
            "metal": ("brass", "steel", "cast-iron", "aluminium"),
            "mark": ("red line", "notch", "second ring", "upper edge"),
        },
    ),
    (
        (
            "The town lies on a {river} and has {count} inhabitants.",
            "Its {building} was built in the {age} century and burned down twice.",
            "For a long time people here lived on {trade}.",
            "The railway came late, and with it the first {building}.",
            "A wall of {stone} still surrounds the oldest quarter.",
            "Once a year the {trade} is remembered by a market.",
            "The {river} has been straightened since, and the mills are gone.",
            "Most houses are of {stone}, with roofs of slate.",
        ),
        {
            "river": ("broad river", "small stream", "canal", "tributary"),
            "count": ("four thousand", "nine hundred", "twenty thousand", "sixty thousand"),
            "building": ("town hall", "theatre", "school", "granary"),
            "age": ("twelfth", "fifteenth", "seventeenth", "eighteenth"),
            "trade": ("salt", "weaving", "fishing", "glass", "timber"),
            "stone": ("sandstone", "granite", "brick", "limestone"),
        },
    ),
)  # fmt: skip


def embedded_notes() -> list[dict[str, Any]]:
    """The 600 embedded notes, in a fixed order, as "text"; the same on every platform.

    Example:
        >>> notes = embedded_notes()
        >>> len(notes), len({note["text"] for note in notes}), sorted(notes[0])
        (600, 600, ['id', 'text'])
    """
    return [{"id": f"T{number:03d}", "text": text} for number, text in enumerate(_texts())]


@functools.cache
def _texts() -> tuple[str, ...]:
    draw = Draw(SEED)
    texts: dict[str, None] = {}
    while len(texts) < NUM_RECORDS:
        frames, slots = SUBJECTS[len(texts) % len(SUBJECTS)]
        chosen = {name: draw.one(options) for name, options in slots.items()}
        sentences = draw.shuffled(frames)[:SENTENCES]
        texts[" ".join(sentences).format(**chosen)] = None
    return tuple(texts)
