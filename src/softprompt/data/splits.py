"""Seeded parts of a table: knows how to draw and to stratify rows, not what they are used for.

The draw depends on the seed, the number of rows and the values of the column ``by`` only, and stays the same
on every platform and Python version. The rows of a part keep the order they had in the table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from softprompt.data.table import Table
from softprompt.errors import DataError

__all__ = ["shuffled", "split", "subset"]

T = TypeVar("T")


def subset(table: Table, n: int, seed: int, by: str | None = None, *, group: str | None = None) -> Table:
    """Draw ``n`` rows.

    Args:
        table: what to draw from.
        n: how many rows, at least 1.
        seed: the draw; the same seed gives the same rows.
        by: a column whose values keep their shares in the draw (largest remainder).
        group: as in ``split``.

    Raises:
        DataError: more rows asked for than there are, fewer than 1, or no column ``by`` or ``group``.
    """
    return split(table, [n], seed, by, group=group)[0]


def split(
    table: Table,
    sizes: Sequence[int] | float,
    seed: int,
    by: str | None = None,
    *,
    group: str | None = None,
) -> tuple[Table, ...]:
    """Cut ``table`` into parts that share no row.

    Args:
        table: what to cut.
        sizes: the number of rows of each part (what is left over is in none of them), or one fraction
            between 0 and 1: then there are two parts, the fraction and the rest.
        seed: the draw; the same seed gives the same parts.
        by: a column whose values keep their shares in every part (largest remainder).
        group: a column whose equal values must stay together, such as a passage with many questions. Parts
            then have as many rows as whole groups make up without exceeding the size, and ``by`` is not
            heeded.

    Raises:
        DataError: more rows asked for than there are, a part without rows, or no column ``by`` or ``group``.
    """
    counts = _fraction(table, sizes) if isinstance(sizes, float) else list(sizes)
    _check(table, counts)
    if group is not None:
        return _whole_groups(table, counts, seed, group, rest=isinstance(sizes, float))
    pools = {key: shuffled(indices, f"{seed}:{key}") for key, indices in sorted(_groups(table, by).items())}
    parts = []
    for count in counts:
        taken = _shares({key: len(pool) for key, pool in pools.items()}, count)
        chosen = sorted(index for key, pool in pools.items() for index in pool[: taken[key]])
        pools = {key: pool[taken[key] :] for key, pool in pools.items()}
        parts.append(table.take(chosen, _origin(table, count, seed)))
    return tuple(parts)


def _whole_groups(table: Table, counts: list[int], seed: int, group: str, *, rest: bool) -> tuple[Table, ...]:
    """Fill each part with groups, in a seeded order, that still fit; the last takes the rest if ``rest``."""
    pool = shuffled(list(_groups(table, group).values()), seed)
    parts = []
    for place, count in enumerate(counts):
        chosen: list[int] = []
        left: list[list[int]] = []
        everything = rest and place == len(counts) - 1
        for indices in pool:
            if everything or len(chosen) + len(indices) <= count:
                chosen += indices
            else:
                left.append(indices)
        if not chosen:
            raise DataError(
                f"No group of equal {group!r} in {table.origin} fits into a part of {count} rows: ask for "
                "more rows, or take data.group away."
            )
        pool = left
        parts.append(table.take(sorted(chosen), _origin(table, len(chosen), seed)))
    return tuple(parts)


def shuffled(items: Sequence[T], seed: int | str) -> list[T]:
    """Return ``items`` in a seeded order.

    Only ``random.random()`` is promised to give the same numbers in every Python version, so the shuffle is
    written out here.
    """
    order = list(items)
    draw = random.Random(seed).random
    for last in range(len(order) - 1, 0, -1):
        other = int(draw() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def _fraction(table: Table, fraction: float) -> list[int]:
    if not 0 < fraction < 1:
        raise DataError(f"A fraction of {table.origin} must lie between 0 and 1, not be {fraction}.")
    first = round(len(table) * fraction)
    if not 0 < first < len(table):
        raise DataError(
            f"{table.origin} has too few rows ({len(table)}) to be cut at {fraction}: a part would be empty."
        )
    return [first, len(table) - first]


def _check(table: Table, counts: list[int]) -> None:
    if any(count < 1 for count in counts):
        raise DataError(f"A part of {table.origin} needs at least 1 row, not {min(counts)}.")
    if sum(counts) > len(table):
        raise DataError(
            f"{table.origin} has {len(table)} rows, which is fewer than the {sum(counts)} asked for."
        )


def _groups(table: Table, by: str | None) -> dict[str, list[int]]:
    """Row indices by the value of ``by``, as text; one group when there is no ``by``."""
    if by is None:
        return {"": list(range(len(table)))}
    table.require_columns((by,))
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(table.rows):
        groups.setdefault(str(row.get(by)), []).append(index)
    return groups


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """How many of ``count`` rows each group gives: its share rounded down, then the largest remainders."""
    total = sum(sizes.values())
    shares = {key: count * size // total for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(count * sizes[key] % total), -sizes[key], key))
    for key in by_remainder[: count - sum(shares.values())]:
        shares[key] += 1
    return shares


def _origin(table: Table, count: int, seed: int) -> str:
    return table.origin if count == len(table) else f"{table.origin} ({count} of its rows, seed {seed})"
