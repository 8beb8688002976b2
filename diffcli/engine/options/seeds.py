"""The seeds of images: of one number image i has seed + i, of several it has number i of them.

Imports nothing heavy, so that a mistake in `--seed 1,5,9` or `--seed 0-15` is answered at once.
"""

from diffcli.config import UserError, quoted

Seeds = int | tuple[int, ...]
MOST = 1_000_000  # that a text may name
LONGEST = 1000  # digits of one
LIMIT = 2**63
SHOWN = 40  # letters of a text that an error repeats
FORMS = "give a whole number from 0, a list or a range, for example --seed 5, --seed 1,5,9 or --seed 0-15"


def nth_seed(seeds: Seeds, i: int) -> int:
    """The seed of image i, from 0. Past the end of several the numbers go on from the last."""
    if isinstance(seeds, int):
        return seeds + i
    return seeds[i] if i < len(seeds) else seeds[-1] + i + 1 - len(seeds)


def seed_count(seeds: Seeds) -> int | None:
    """How many images several seeds stand for; None of one number, from which any number of images follow."""
    return None if isinstance(seeds, int) else len(seeds)


def read_seeds(text: str) -> Seeds:
    """The number or the numbers that a text names, such as `5`, `1,5,9`, `0-15` or `0-3,7`; ranges hold both ends.

    Raises UserError.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and _is_number(parts[0]):
        return _bounded(int(parts[0]), text)
    found: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        first, last = first.strip(), last.strip() if dash else first.strip()
        if not (_is_number(first) and _is_number(last)):
            what = f"'{part}' is no seed" if part else "names no seed between two commas" if text else "names no seed"
            raise UserError(f"--seed {quoted(text)}: {what}", FORMS)
        low, high = int(first), _bounded(int(last), text)
        if high < low:
            raise UserError(f"--seed {text}: the range {part} ends before it begins", f"write {high}-{low}")
        if len(found) + high - low >= MOST:
            hint = f"give the first alone and the number of images: --seed {low} --n N"
            raise UserError(f"--seed {text}: names more than {MOST} seeds", hint)
        found += range(low, high + 1)
    check_distinct_seeds(tuple(found))
    return tuple(found)


def _bounded(seed: int, text: str) -> int:
    """The seed, which `train --seed` would take, too: from 2^64 on noise would repeat that of small seeds."""
    if seed >= LIMIT:
        raise UserError(f"--seed {text[:SHOWN]}: a seed must be below {LIMIT}", FORMS)
    return seed


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST


def check_distinct_seeds(seeds: Seeds) -> None:
    """Raises UserError where a seed is named twice: its images would be the same."""
    if isinstance(seeds, tuple) and len(set(seeds)) < len(seeds):
        known: set[int] = set()
        twice = next(seed for seed in seeds if seed in known or known.add(seed))  # type: ignore[func-returns-value]
        raise UserError(f"--seed: {twice} is named twice", "name each seed once")


def check_seeds(seeds: Seeds, n: int | None, interpolate: int | None) -> None:
    """Raises UserError where several seeds contradict --n, or are not the two ends of --interpolate."""
    count = seed_count(seeds)
    if count is None:
        return
    check_distinct_seeds(seeds)
    if interpolate is not None:
        if count != 2:
            raise UserError(
                f"--seed names {count} seeds, but --interpolate {interpolate} goes from one to a second",
                "name two seeds, or one, from which it goes to the next",
            )
    elif n is not None and n != count:
        raise UserError(
            f"--n {n}: --seed names {count} {'seed' if count == 1 else 'seeds'}, and each is an image",
            "leave --n out, or give the first seed alone",
        )
