"""The summary counts what it says, marks the best, and the verdict follows from the numbers."""

from __future__ import annotations

import itertools
import math
from statistics import fmean, stdev
from typing import Any

import pytest

from comparison import fake_results
from softprompt import numbers
from softprompt.comparison import words
from softprompt.comparison.results import Costs, MethodResult, Metric, Pair, Results, Run, Seeds, TestRow
from softprompt.comparison.table import (
    GROUPS,
    SummaryRow,
    columns,
    comparison,
    mark,
    ranked,
    scores,
    summary_rows,
)
from softprompt.evaluation.paired import FLOOR


def run(seed: int, accuracy: float, **changes: Any) -> Run:
    costs = Costs(trained_parameters=10, artifact_bytes=2000, positions=4, train_seconds=10.0 + seed)
    values: dict[str, Any] = {
        "seed": seed,
        "costs": costs,
        "steps": 8,
        "best_step": 4,
        "losses": [],
        "validations": [],
        "validation": {"accuracy": Metric(value=accuracy + 0.1)},
        "test": {"accuracy": Metric(value=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)},
        "predictions": [0, 1],
    }
    return Run.model_validate(values | changes)


FREE = {"costs": Costs(trained_parameters=0, artifact_bytes=0, positions=0, train_seconds=0)}


def method(name: str, *runs: Run, trained: bool = True, summary: Seeds | None = None) -> MethodResult:
    known = {"accuracy": summary} if summary else {}
    return MethodResult(name=name, kind="k", trained=trained, trials=[], runs=list(runs), summary=known)


def results(*methods: MethodResult, **changes: Any) -> Results:
    values: dict[str, Any] = {
        "name": "job",
        "created": "2026-01-02T03:04:05Z",
        "finished": True,
        "metric": "accuracy",
        "labels": ["a", "b"],
        "test_rows": [TestRow(input="x", answer="a"), TestRow(input="y", answer="b")],
        "data": {},
        "methods": list(methods),
        "settings": {},
        "versions": {},
        "hardware": {},
    }
    return Results.model_validate(values | changes)


def by_name(found: Results) -> dict[str, SummaryRow]:
    return {row.name: row for row in summary_rows(found)}


# Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("accuracy", 0.9006, "90.1%"), ("nll", 2.4567, "2.457"), ("nll", -0.5, "−0.500"),
     ("bleu", 123.45, "123.5"),
     ("rougeL", 0.4, "0.400"), ("accuracy", math.nan, "–"), ("nll", math.inf, "–"), ("accuracy", None, "–")],
)  # fmt: skip
def test_scores_read_as_people_write_them(metric: str, value: float | None, text: str) -> None:
    assert numbers.metric_text(metric, value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.013, "+1.3"),
        ("accuracy", -0.013, "−1.3"),
        ("accuracy", -0.0001, "0.0"),
        ("nll", 0.5, "+0.500"),
    ],
)
def test_differences_have_a_sign_unless_they_are_nothing(metric: str, value: float, text: str) -> None:
    assert numbers.difference_text(metric, value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.0213, "p = 0.021"), (0.0996, "p = 0.10"),
     (1.0, "p = 1.00"),
     (math.nan, "p unknown")],
)  # fmt: skip
def test_p_is_told_to_what_it_is_worth(p: float, text: str) -> None:
    assert numbers.p_text(p) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (46_200, "46.2 kB"),
        (999_900, "1.00 MB"),
        (538_090_000, "538 MB"),
        (2e9, "2.00 GB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert numbers.bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.0312, "31.2 ms"), (0.9996, "1.00 s"), (9.996, "10.0 s"), (99.96, "100 s"),
     (599.7, "10 min"),
     (7265, "2 h 01 min")],
)  # fmt: skip
def test_times(seconds: float, text: str) -> None:
    assert numbers.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "", "0"), (1e4, "", "10k"), (1e9, "", "1B"), (1e3, "B", "1 kB"), (1e9, "B", "1 GB"),
     (0.05, "s", "50 ms"),
     (200, "s", "200 s"), (0, "s", "0 s")],
)  # fmt: skip
def test_round_numbers_beside_an_axis(value: float, unit: str, text: str) -> None:
    assert numbers.round_text(value, unit) == text


# Rows --------------------------------------------------------------------------------------------


def test_letters_go_on_behind_z() -> None:
    assert [mark(n) for n in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AB",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


def test_the_best_stands_first_and_those_without_scores_last() -> None:
    found = results(
        method("none"), method("low", run(0, 0.5)), method("high", run(0, 0.9)), method("also none")
    )
    assert [m.name for m in ranked(found)] == ["high", "low", "none", "also none"]
    turned = found.model_copy(update={"higher_is_better": False})
    assert [m.name for m in ranked(turned)] == ["low", "high", "none", "also none"]


def test_a_row_holds_means_and_spreads_over_seeds() -> None:
    seeds = [run(0, 0.80), run(1, 0.86), run(2, 0.83)]
    summary = Seeds(mean=0.83, spread=0.03, low=0.79, high=0.87)
    row = by_name(results(method("m", *seeds, summary=summary)))["m"]
    test, valid = row.cells["test.accuracy"], row.cells["validation"]
    assert (test.text, test.interval, test.spread) == ("83.0%", "79.0–87.0", "±3.0")
    assert valid.value == pytest.approx(fmean([0.9, 0.96, 0.93]))
    assert valid.spread == f"±{100 * stdev([0.9, 0.96, 0.93]):.1f}"
    assert row.cells["seconds"].value == pytest.approx(11.0)
    assert row.cells["parameters"].text == "10"
    assert row.seeds == 3


def test_without_a_summary_the_runs_so_far_are_averaged() -> None:
    two = scores(method("m", run(0, 0.8), run(1, 0.9)), "accuracy")
    assert two is not None
    assert (two.mean, two.spread) == pytest.approx((0.85, stdev([0.8, 0.9])))
    assert math.isnan(two.low)
    one = scores(method("m", run(0, 0.8)), "accuracy")
    assert one is not None
    assert (one.low, one.high, one.spread) == pytest.approx((0.75, 0.85, 0.0))
    assert scores(method("m"), "accuracy") is None


def test_the_worst_change_is_the_worst_on_average() -> None:
    first, second = {"typos": 0.5, "case": 0.6}, {"typos": 0.8, "case": 0.6}
    found = results(method("m", run(0, 0.9, perturbed=first), run(1, 0.9, perturbed=second)))
    cell = by_name(found)["m"].cells["perturbed"]
    assert (cell.text, cell.detail) == ("60.0%", "case")
    lower = found.model_copy(update={"higher_is_better": False})
    assert by_name(lower)["m"].cells["perturbed"].detail == "typos"


def test_columns_that_nobody_fills_are_left_out() -> None:
    keys = [column.key for column in columns(results(method("m", run(0, 0.9))))]
    assert keys == ["test.accuracy", "validation", "parameters", "bytes", "seconds", "trials"]
    everything = [column.key for column in columns(fake_results.topics(40, (0,)))]
    assert everything[:5] == ["test.accuracy", "test.nll", "validation", "test.ece", "perturbed"]
    assert everything[-3:] == ["memory", "latency", "trials"]


def test_columns_stand_in_groups() -> None:
    found = [column.group for column in columns(fake_results.topics(40, (0,)))]
    assert [name for name, _ in itertools.groupby(found)] == list(GROUPS)


def best(found: Results, key: str) -> set[str]:
    return {row.name for row in summary_rows(found) if row.cells[key].best}


def test_the_best_is_marked_where_there_is_one() -> None:
    cheap = run(0, 0.5, costs=Costs(trained_parameters=0, artifact_bytes=1, positions=0, train_seconds=0))
    low, high = run(0, 0.80004), run(0, 0.80001)
    found = results(method("text", cheap, trained=False), method("a", low), method("b", high))
    assert best(found, "test.accuracy") == {"a", "b"}  # what reads the same is the same
    assert best(found, "bytes") == set()  # both trained methods cost the same; untrained ones are no rivals
    other = run(0, 0.7, costs=Costs(trained_parameters=5, artifact_bytes=900, positions=0, train_seconds=99))
    found = results(method("text", cheap, trained=False), method("a", low), method("b", other))
    assert best(found, "parameters") == {"b"}
    assert best(found, "seconds") == {"a"}
    assert best(found, "trials") == set()


def test_less_is_better_for_losses_and_calibration_errors() -> None:
    found = fake_results.topics(200, (0,))
    for metric in ("nll", "ece"):
        values = {row.name: row.cells[f"test.{metric}"].value or 0.0 for row in summary_rows(found)}
        assert min(values, key=lambda name: values[name]) in best(found, f"test.{metric}")


def test_a_method_in_trouble_has_a_row_of_dashes() -> None:
    row = by_name(fake_results.unfinished())["LoRA r8"]
    assert row.trouble.startswith("The loss became NaN")
    assert {row.cells[key].text for key in ("test.accuracy", "validation", "seconds", "latency")} == {"–"}


def test_numbers_that_are_none_are_dashes() -> None:
    odd = run(0, math.nan, test={"accuracy": Metric(value=math.nan, low=-math.inf, high=math.inf)})
    row = by_name(results(method("m", odd), method("n", run(0, 0.5))))["m"]
    assert row.cells["test.accuracy"].text == row.cells["validation"].text == "–"


# Pairs and sentences -----------------------------------------------------------------------------


def pair(first: str, second: str, difference: float, p: float) -> Pair:
    low, high = difference - 0.02, difference + 0.03
    return Pair(first=first, second=second, difference=difference, low=low, high=high, p=p, test="mcnemar")


def test_a_pair_turned_round_is_the_same_pair() -> None:
    found = results(method("a"), method("b"), pairs=[pair("a", "b", 0.10, 0.01)])
    turned = comparison(found, "b", "a")
    assert turned is not None
    assert (turned.difference, turned.low, turned.high) == pytest.approx((-0.10, -0.13, -0.08))
    assert comparison(found, "a", "b") == found.pairs[0]
    assert comparison(found, "a", "c") is None


def trio(**changes: Any) -> Results:
    text = method("demos", run(0, 0.60, **FREE), trained=False)
    pairs = [
        pair("lora", "soft", -0.02, 0.21),
        pair("soft", "demos", 0.25, 0.0002),
        pair("lora", "demos", 0.2, 0.01),
    ]
    return results(text, method("soft", run(0, 0.85)), method("lora", run(0, 0.83)), pairs=pairs, **changes)


def test_the_verdict_names_leader_runner_up_and_the_best_without_training() -> None:
    assert words.verdict(trio()) == (
        "No cheaper method is level with the best, soft. "
        "soft leads with an accuracy of 85.0% (95% interval 80.0–90.0): 2.0 points ahead of lora, which is "
        "not significant (p = 0.21), and 25.0 points ahead of demos, the best method without training, "
        "which is significant (p < 0.001)."
    )


def test_the_verdict_names_first_what_is_cheapest_among_the_level() -> None:
    def found(p: float, gap: float, seconds: float) -> str:
        costs = Costs(trained_parameters=9, artifact_bytes=9, positions=0, train_seconds=seconds)
        words_alone = method("words", run(0, 0.85 - gap, costs=costs))
        pairs = [
            pair("soft", "words", gap, p),
            pair("soft", "demos", 0.25, 0.0002),
            pair("words", "demos", 1, 1),
        ]
        demos = method("demos", run(0, 0.60, **FREE), trained=False)
        return words.verdict(results(method("soft", run(0, 0.85)), words_alone, demos, pairs=pairs))

    assert found(0.21, 0.01, 0.5).startswith(
        "The cheapest method that is level with the best is words: 84.0%, 1.0 points below soft (p = 0.21 by "
        "itself), after 500 ms of training instead of 10.0 s. soft leads with"
    )
    none = "No cheaper method is level with the best, soft. soft leads with"
    assert found(0.04, 0.01, 0.5).startswith(none)  # level neither where a test tells them apart
    assert found(0.21, 0.03, 0.5).startswith(none)  # nor far off for want of rows
    assert found(0.21, 0.01, 99.0).startswith(none)  # and not cheaper


def test_the_verdict_where_less_is_better() -> None:
    values = {"metric": "nll", "higher_is_better": False}
    a = method("a", run(0, 0, test={"nll": Metric(value=2.0)}))
    b = method("b", run(0, 0, test={"nll": Metric(value=2.5)}, **FREE), trained=False)
    assert words.verdict(results(b, a, **values)) == (
        "a leads with a loss per token of 2.000: 0.500 below b, the best method without training, "
        "which was not tested for significance."
    )


def test_the_verdict_of_little() -> None:
    assert words.verdict(results()) == "No method has a test score yet."
    assert words.verdict(results(method("a", run(0, 0.5)))) == (
        "a reaches an accuracy of 50.0% (95% interval 45.0–55.0); there is no other score to hold it against."
    )
    level = results(method("a", run(0, 0.5)), method("b", run(0, 0.5)))
    assert words.verdict(level).endswith(": level with b.")
    assert words.verdict(trio(finished=False)).startswith("So far soft leads")


def test_an_untrained_leader_is_held_against_the_best_trained() -> None:
    text, soft = method("demos", run(0, 0.9, **FREE), trained=False), method("soft", run(0, 0.85))
    said = words.verdict(results(text, method("bare", run(0, 0.88, **FREE), trained=False), soft))
    assert "2.0 points ahead of bare, which" in said
    assert "5.0 points ahead of soft, the best trained method, which" in said


def test_significance_is_that_of_the_corrected_p_and_the_floor_is_no_equality() -> None:
    weak = pair("soft", "lora", 0.02, 0.04).model_copy(update={"p_holm": 0.12})
    sure = Pair(
        first="soft",
        second="demos",
        difference=0.25,
        low=0.2,
        high=0.3,
        p=FLOOR,
        p_holm=28 * FLOOR,
        test="bootstrap",
    )
    found = trio().model_copy(update={"pairs": [weak, sure]})
    said = words.verdict(found)
    assert "2.0 points ahead of lora, which is not significant (p = 0.12)" in said
    assert said.endswith("which is significant (p < 0.006).")  # 0.0056 at most
    assert words.p_of(weak.model_copy(update={"p_holm": None})) == "p = 0.040"
    assert words.tested(found) == (
        "p by the paired bootstrap over rows and seeds or the exact McNemar test, corrected for all 2 pairs "
        "together (Holm); below 0.05 a difference is called significant."
    )


def test_it_is_said_what_difference_could_have_been_seen() -> None:
    assert words.power(trio()) == (
        "A true difference of about 3.6 points would be seen (p below 0.05 by itself) in 4 of 5 such "
        "comparisons; smaller ones are often missed."  # 2.8 standard errors of which an interval has 3.92
    )
    assert words.power(results(method("a", run(0, 0.5)))) == ""


def test_it_is_said_which_intervals_leave_seeds_out() -> None:
    three = method("soft", run(0, 0.8), run(1, 0.8), run(2, 0.8))
    votes, demos = method("votes", run(0, 0.9)), method("demos", run(0, 0.6, **FREE), trained=False)
    both = "Intervals cover other test rows and other seeds"
    assert words.covered(results(three)) == f"{both}."
    assert words.covered(results(three, votes)) == f"{both}; of votes, with one run, rows alone."
    assert (
        words.covered(results(three, votes, demos))
        == f"{both}; of votes and demos, with one run, rows alone."
    )
    assert words.covered(results(votes, demos)) == (
        "Intervals cover other test rows, not other seeds: there is one run of each method."
    )


def test_what_is_missing_is_named() -> None:
    assert words.missing(fake_results.unfinished()) == [
        "LoRA r8 has no result: The loss became NaN at step 7.",
        "soft prompt lacks seeds 1, 2.",
        "full fine-tuning has not been run yet.",
    ]
    assert words.missing(fake_results.topics(40)) == []
    assert words.missing(trio(finished=False)) == ["Some runs are still to come."]


def test_methods_that_are_asked_for_and_not_there_are_missing() -> None:
    settings = {"methods": [{"name": "soft"}, {"name": "later"}, "odd", {"name": 3}]}
    assert words.missing(trio(finished=False, settings=settings)) == ["later has not been run yet."]


def test_votes_of_trained_methods_are_no_prompt_engineering() -> None:
    votes = method("votes", run(0, 0.9), trained=False)  # its cost counts what its voters learnt
    text = method("demos", run(0, 0.6, **FREE), trained=False)
    found = results(text, votes, method("soft", run(0, 0.8), run(1, 0.8)))
    assert "30.0 points ahead of demos, the best method without training" in words.verdict(found)
    assert words.missing(found) == []
    assert {row.name: row.trained for row in summary_rows(found)} == {
        "votes": True,
        "soft": True,
        "demos": False,
    }


def test_a_benchmarks_own_metrics_read_as_metrics() -> None:
    assert numbers.metric_name("official f1a") == "official F1a"
    assert numbers.metric_text("official em", 0.5) == "50.0%"
    assert numbers.lower_is_better("official nll")


def test_facts_say_what_was_compared() -> None:
    facts = words.facts(fake_results.topics(40))
    assert facts["base"].startswith("smollm2-135m, 134,515,008 parameters, fingerprint 9f2b66d0c1aa47e5")
    assert facts["test rows"] == "40 of bundled:bbc-news/test (digest 3f0c9a7be1d2)"
    assert facts["seeds"] == "0, 1, 2"
    assert facts["hardware"] == "Xeon, 2 cores, 25.8 GB memory, device cpu, dtype float32"
    assert words.facts(trio())["test rows"] == "2"
