"""How a person names where data lie, for hints."""

TYPED = {
    "data.root": "--data PATH",
    "SOURCE": "SOURCE",
    "--out": "--out DIR",
    "the folder": "A or B",  # the sides of a score
    "the prepared data set": "A or B",
}


def given_as(key: str, what: str) -> str:
    """What to type for something else under a key of messages: "give a folder as --data PATH"."""
    return f"give {what} as {TYPED.get(key, key)}"
