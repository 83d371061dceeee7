from __future__ import annotations

import random
from collections import Counter

import pytest

from softprompt.data.splits import shuffled, split, subset
from softprompt.data.table import Table
from softprompt.errors import DataError


def table(sizes: dict[str, int], seed: int = 0) -> Table:
    labels = [label for label, size in sizes.items() for _ in range(size)]
    random.Random(seed).shuffle(labels)
    return Table(tuple({"id": i, "label": label} for i, label in enumerate(labels)), "t.csv")


def ids(part: Table) -> list[object]:
    return [row["id"] for row in part.rows]


def counts(part: Table) -> Counter[object]:
    return Counter(row["label"] for row in part.rows)


def test_the_shuffle_is_fixed_forever() -> None:
    assert shuffled(range(8), 0) == [0, 3, 4, 7, 1, 2, 5, 6]
    assert shuffled(range(8), "0:x") == [2, 6, 3, 4, 0, 1, 5, 7]
    assert shuffled([], 0) == []


def test_subset_counts_follow_the_shares() -> None:
    part = subset(table({"a": 60, "b": 30, "c": 10}), 20, 1, by="label")
    assert counts(part) == {"a": 12, "b": 6, "c": 2}


def test_the_largest_remainders_get_the_rest() -> None:
    # 7 of 10: shares 4.2, 2.1, 0.7, so the last row goes to c.
    assert counts(subset(table({"a": 6, "b": 3, "c": 1}), 7, 0, by="label")) == {"a": 4, "b": 2, "c": 1}


def test_same_seed_same_rows_in_the_order_of_the_table() -> None:
    whole = table({"a": 50, "b": 50})
    first, again, other = (subset(whole, 30, seed, by="label") for seed in (3, 3, 4))
    assert first == again
    assert first.digest != other.digest
    assert ids(first) == [i for i in range(100) if i in ids(first)]
    assert first.origin == "t.csv (30 of its rows, seed 3)"


def test_all_rows_are_the_table_itself() -> None:
    whole = table({"a": 5, "b": 6})
    assert subset(whole, 11, 9) == whole


@pytest.mark.parametrize("by", [None, "label"])
def test_parts_share_no_row_and_keep_shares(by: str | None) -> None:
    rng = random.Random(0)
    for seed in range(30):
        whole = table({label: rng.randint(1, 40) for label in "abcd"}, seed)
        cuts = sorted(rng.sample(range(1, len(whole)), 2))
        sizes = [cuts[0], cuts[1] - cuts[0], rng.randint(1, len(whole) - cuts[1])]
        parts = split(whole, sizes, seed, by)
        assert [len(part) for part in parts] == sizes
        together = [i for part in parts for i in ids(part)]
        assert len(set(together)) == len(together)
        assert all(ids(part) == [i for i in range(len(whole)) if i in set(ids(part))] for part in parts)
        if by:
            shares = counts(whole)
            for label, count in counts(parts[0]).items():
                assert abs(count - sizes[0] * shares[label] / len(whole)) < 1


def test_a_fraction_gives_two_parts() -> None:
    first, rest = split(table({"a": 80, "b": 20}), 0.8, 0, by="label")
    assert counts(first) == {"a": 64, "b": 16}
    assert counts(rest) == {"a": 16, "b": 4}
    assert not set(ids(first)) & set(ids(rest))


def test_values_of_any_type_make_strata() -> None:
    values: tuple[object, ...] = (1, True, None, 1.5, "x")
    rows: list[dict[str, object]] = [{"label": value} for value in values for _ in range(4)]
    assert len(subset(Table((*rows, {}), "t"), 10, 0, by="label")) == 10


@pytest.mark.parametrize(
    ("sizes", "by", "said"),
    [
        ([8, 3], None, "t.csv has 10 rows, which is fewer than the 11 asked for."),
        ([0], None, "at least 1 row, not 0"),
        ([5, -1], None, "at least 1 row, not -1"),
        (1.0, None, "between 0 and 1"),
        (0.01, None, "too few rows"),
        ([3], "labl", "did you mean 'label'?"),
    ],
)
def test_faults(sizes: list[int] | float, by: str | None, said: str) -> None:
    with pytest.raises(DataError) as caught:
        split(table({"a": 5, "b": 5}), sizes, 0, by)
    assert said in str(caught.value)


def grouped() -> Table:
    passages = [p for p, size in enumerate([5, 1, 4, 2, 3, 5]) for _ in range(size)]
    random.Random(0).shuffle(passages)
    return Table(tuple({"id": i, "passage": p, "label": i % 2} for i, p in enumerate(passages)), "t.csv")


def passages(part: Table) -> set[object]:
    return {row["passage"] for row in part.rows}


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed: int) -> None:
    table = grouped()
    first, rest = split(table, 0.6, seed, "label", group="passage")
    assert passages(first).isdisjoint(passages(rest))
    assert sorted([*ids(first), *ids(rest)]) == ids(table)  # type: ignore[type-var]
    assert 8 <= len(first) <= 12  # the largest group has 5 rows, and 12 are wanted
    a, b = split(table, [6, 5], seed, group="passage")
    assert passages(a).isdisjoint(passages(b))
    assert len(a) <= 6
    assert len(b) <= 5
    assert split(table, [6, 5], seed, group="passage") == (a, b)
    assert ids(a) == sorted(ids(a))  # type: ignore[type-var]


def test_a_part_that_holds_no_group_is_refused() -> None:
    table = Table(tuple({"id": i, "passage": i // 4} for i in range(8)), "t.csv")
    with pytest.raises(DataError, match=r"No group of equal 'passage' in t\.csv fits into a part of 3 rows"):
        subset(table, 3, 0, group="passage")
    with pytest.raises(DataError, match="no column 'pasage'"):
        subset(table, 4, 0, group="pasage")
