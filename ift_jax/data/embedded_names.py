"""Short texts about who is called what: a question about a name in, the name out, no download.

The case that this project began with: a model that has only learned to rate reviews no longer
knows that the cat, in "The cat's name is Charlie", is called Charlie. Each text names two or three
bearers (pets, people, boats ...), and a question asks for one of them, so that the answer has to be
read off the right sentence. The records are put together by a seeded generator; all wording was
written for this project.
"""

import functools
from typing import Any

from ift_jax.data.embedded_reviews import Draw

NUM_RECORDS = 2400
SEED = 20250117

NAMES = (
    "Charlie", "Bella", "Oscar", "Luna", "Milo", "Daisy", "Felix", "Nala", "Rufus", "Pepper",
    "Simba", "Olive", "Hugo", "Ruby", "Otto", "Willow", "Jasper", "Hazel", "Bruno", "Poppy",
    "Leo", "Ivy", "Max", "Clara", "Finn", "Stella", "Theo", "Mabel", "Gus", "Nora", "Archie",
    "Greta", "Ziggy", "Penny", "Basil", "Freya", "Toby", "Iris", "Monty", "Elsa", "Sam", "Cora",
    "Rocky", "Wanda", "Barney", "Juno", "Casper", "Matilda", "Ernie", "Sophie", "Walter",
    "Lottie", "Vincent", "Agnes", "Homer", "Bonnie", "Ralph", "Esther", "Percy", "Maud",
)  # fmt: skip

# Who bears a name, and what they may be doing; a kind's bearers fit all of its doings.
BEARERS = (
    (
        ("cat", "dog", "parrot", "tortoise", "hamster", "rabbit", "donkey", "goat", "old horse"),
        (
            "sleeps next to the stove", "is afraid of thunder", "waits at the gate every evening",
            "has hurt a foot", "was born in the barn", "likes apples", "came from a shelter",
            "follows the children everywhere", "got lost last winter", "hates the vacuum cleaner",
        ),
    ),
    (
        ("neighbour", "baker", "dentist", "teacher", "postman", "gardener", "nurse", "bus driver"),
        (
            "plays the cello on Sundays", "moved here from the coast", "gets up before five",
            "is learning Portuguese", "never eats breakfast", "repairs old radios",
            "has three brothers", "won a prize for pumpkins", "sings in the choir",
        ),
    ),
    (
        ("boat", "tractor", "robot", "windmill", "locomotive", "balloon"),
        (
            "needs a new coat of paint", "was built sixty years ago", "makes a terrible noise",
            "is older than the house", "broke down in May", "can be seen from the bridge",
        ),
    ),
)  # fmt: skip

SENTENCES = (
    "The {bearer}'s name is {name}.",
    "The {bearer} is called {name}.",
    "They call the {bearer} {name}.",
    "{name}, the {bearer}, {doing}.",
    "The {bearer}, whose name is {name}, {doing}.",
    "The {bearer} is called {name} and {doing}.",
    "Since last year the {bearer} has had a name: {name}.",
    "Everyone in the street knows {name}, the {bearer}.",
)
ASIDES = (
    "It rained all morning.",
    "The market opens at eight.",
    "Supper was late again.",
    "Nobody remembers how it began.",
    "The road to the lake is closed.",
    "There was fresh bread on the table.",
    "The summer was long and dry.",
    "A letter had arrived the day before.",
)
QUESTIONS = (
    "What is the {bearer}'s name?",
    "What is the {bearer} called?",
    "What is the name of the {bearer}?",
    "Which name does the {bearer} have?",
)


def embedded_names() -> list[dict[str, Any]]:
    """The 2,400 embedded questions about names, in a fixed order.

    `names` holds every name of the text, in alphabetical order; `name` is the one asked for.
    The same records on every platform and Python version; fresh dicts at every call.

    Example:
        >>> record = embedded_names()[0]
        >>> sorted(record)
        ['id', 'name', 'names', 'question', 'text']
        >>> record["name"] in record["names"], record["name"] in record["text"]
        (True, True)
    """
    return [{**record, "names": list(record["names"])} for record in _records()]


@functools.cache
def _records() -> tuple[dict[str, Any], ...]:
    draw = Draw(SEED)
    records: list[dict[str, Any]] = []
    texts = set()
    while len(records) < NUM_RECORDS:
        record = _record(draw)
        if record["text"] not in texts:
            texts.add(record["text"])
            records.append({"id": f"N{len(records):04d}", **record})
    return tuple(records)


def _record(draw: Draw) -> dict[str, Any]:
    count = 3 if draw.chance(0.5) else 2
    names = draw.shuffled(NAMES)[:count]
    every = [(bearer, doings) for bearers, doings in BEARERS for bearer in bearers]
    bearers = draw.shuffled(every)[:count]
    frames = draw.shuffled(SENTENCES)[:count]
    sentences = [
        frame.format(bearer=bearer, name=name, doing=draw.one(doings))
        for (bearer, doings), name, frame in zip(bearers, names, frames, strict=True)
    ]
    if draw.chance(0.6):
        sentences = draw.shuffled([*sentences, draw.one(ASIDES)])
    asked = int(draw.chance(0.5)) if count == 2 else draw.one((0, 1, 2))
    return {
        "text": " ".join(sentences),
        "question": draw.one(QUESTIONS).format(bearer=bearers[asked][0]),
        "name": names[asked],
        "names": sorted(names),
    }
