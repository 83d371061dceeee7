"""Plots show what the results hold, say it in words too, and can all stand in one page."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from comparison import fake_results
from softprompt.comparison import tallies
from softprompt.comparison.answer_plots import confusion_plots, reliability_plots
from softprompt.comparison.axes import apart, cost_scale
from softprompt.comparison.plots import Plot, cost_plots, learning_plots, trial_plots
from softprompt.comparison.results import MethodResult, Results, TestRow
from softprompt.comparison.table import ranked

TOPICS = fake_results.topics(120)


def all_plots(results: Results) -> list[Plot]:
    makers = (cost_plots, learning_plots, trial_plots, confusion_plots, reliability_plots)
    return [plot for make in makers for plot in make(results)]


PLOTS = all_plots(TOPICS)


def texts(plot: Plot) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(plot.svg).iter("text")]


# As part of a page -------------------------------------------------------------------------------


def test_every_plot_is_there() -> None:
    assert len(cost_plots(TOPICS)) == 3
    assert len(learning_plots(TOPICS)) == 4  # those that train
    assert len(trial_plots(TOPICS)) == 5  # those that tried more than one setting
    assert len(confusion_plots(TOPICS)) == len(reliability_plots(TOPICS)) == 7


def test_the_same_results_give_the_same_plots() -> None:
    assert all_plots(TOPICS) == PLOTS


def test_ids_are_unique_over_the_page_and_every_reference_is_met() -> None:
    page = "".join(plot.svg for plot in PLOTS)
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert max(ids.values()) == 1
    assert set(used) == set(ids)


def test_plots_take_colours_and_fonts_from_the_page() -> None:
    for plot in PLOTS:
        assert not re.findall(r"#[0-9a-f]{6}", plot.svg)
        assert "font-family" not in plot.svg
        assert "<style" not in plot.svg
        assert len(ElementTree.fromstring(plot.svg).findall(".//text")) > 3  # text is text


def test_plots_say_in_words_what_they_show() -> None:
    for plot in PLOTS:
        root = ElementTree.fromstring(plot.svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 40
    label = ElementTree.fromstring(cost_plots(TOPICS)[0].svg).get("aria-label", "")
    for method in TOPICS.methods:
        assert f"{method.name} {100 * method.summary['accuracy'].mean:.1f}%" in label


def test_methods_are_letters_in_order_of_rank() -> None:
    shown = [text for text in texts(cost_plots(TOPICS)[0]) if text in "ABCDEFG"]
    assert shown == list("ABCDEFG")
    assert [plot.title for plot in confusion_plots(TOPICS)] == [m.name for m in ranked(TOPICS)]


def test_hostile_labels_stay_text() -> None:
    for plot in all_plots(fake_results.hostile()):
        root = ElementTree.fromstring(plot.svg)
        assert {element.tag for element in root.iter()} <= {
            "svg",
            "g",
            "defs",
            "path",
            "use",
            "text",
            "clipPath",
            "rect",
        }
        assert all(letter.isprintable() for text in texts(plot) for letter in text)
        assert not any(element.tag == "text" and len(element) for element in root.iter())  # no mathematics


def test_no_label_is_read_as_mathematics() -> None:
    labels = ["$x^2$", "a_b", "\\frac", "$", "100%"]
    rows = [
        row.model_copy(update={"answer": labels[fake_results.TOPICS.index(row.answer)]})
        for row in TOPICS.test_rows
    ]
    plot = confusion_plots(TOPICS.model_copy(update={"labels": labels, "test_rows": rows}))[0]
    assert Counter(text for text in texts(plot) if text in labels) == dict.fromkeys(labels, 2)


@pytest.mark.parametrize("results", [fake_results.quotes(), fake_results.quotes("nll")], ids=["text", "nll"])
def test_free_text_has_no_plots_of_labels(results: Results) -> None:
    assert confusion_plots(results) == reliability_plots(results) == []
    assert len(all_plots(results)) == 3 + 4 + 5
    better = "higher" if results.higher_is_better else "lower"
    assert any(text.endswith(f"{better} is better") for text in texts(cost_plots(results)[0]))


def test_many_labels_have_no_matrix() -> None:
    assert confusion_plots(fake_results.intents()) == []


def test_little_can_be_drawn_too() -> None:
    stopped = fake_results.unfinished()
    assert len(learning_plots(stopped)) == 2
    nothing = stopped.model_copy(update={"methods": []})
    assert all_plots(nothing) == []
    one = TOPICS.model_copy(update={"methods": TOPICS.methods[:1]})  # costs nothing, learnt nothing
    assert len(cost_plots(one)) == 3


def test_a_wild_loss_does_not_flatten_the_rest() -> None:
    runs = TOPICS.methods[3].runs
    wild = runs[0].model_copy(update={"losses": [(1, 900.0), *runs[0].losses[1:], (97, math.nan)]})
    method = TOPICS.methods[3].model_copy(update={"runs": [wild, *runs[1:]]})
    ticks = texts(learning_plots(TOPICS.model_copy(update={"methods": [method]}))[0])
    assert "1" in ticks
    assert "500" not in ticks


# What is counted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TOPICS.methods, ids=lambda method: method.name)
def test_confusions_are_sklearns(method: MethodResult) -> None:
    true = [TOPICS.labels.index(row.answer) for row in TOPICS.test_rows] if TOPICS.labels else []
    expected = sum(confusion_matrix(true, run.predictions, labels=range(5)) for run in method.runs)
    counts = tallies.confusions(TOPICS, method)
    assert [[counts[t, p] for p in range(5)] for t in range(5)] == expected.tolist()
    assert [tallies.totals(counts)[t] for t in range(5)] == expected.sum(1).tolist()


def test_reliability_is_sklearns() -> None:
    method = TOPICS.methods[4]
    sure = [c for run in method.runs for c in run.confidences]
    right = [hit for run in method.runs for hit in tallies.marks(TOPICS, run)]
    accuracy, confidence = calibration_curve(right, sure, n_bins=10)
    bins = tallies.reliability(TOPICS, method)
    assert [one.accuracy for one in bins] == pytest.approx(accuracy.tolist())
    assert [one.confidence for one in bins] == pytest.approx(confidence.tolist())
    assert sum(one.count for one in bins) == len(sure)


def test_an_answer_that_is_no_label_is_neither_right_nor_wrong() -> None:
    rows = [TestRow(input="x", answer=text) for text in ("sport", " sport ", "chess")]
    found = TOPICS.model_copy(update={"test_rows": rows, "methods": []})
    run = TOPICS.methods[0].runs[0].model_copy(update={"predictions": [3, 1, 3], "row_scores": []})
    assert tallies.answers(found) == [3, 3, None]
    assert tallies.marks(found, run) == [True, False, None]


def test_texts_are_right_only_where_that_can_be_said() -> None:
    quotes = fake_results.quotes()
    run = quotes.methods[0].runs[0]
    assert set(tallies.marks(quotes, run)) == {None}
    exact = quotes.model_copy(update={"metric": "exact_match"})
    scored = run.model_copy(update={"row_scores": [1.0, 0.0]})
    assert tallies.marks(exact, scored) == [True, False]
    assert not tallies.has_answers(exact)


def test_answers_in_other_words_than_the_labels_are_known_by_the_rows_that_are_right() -> None:
    names = {topic: f"{topic}!" for topic in fake_results.TOPICS}
    rows = [row.model_copy(update={"answer": names[row.answer]}) for row in TOPICS.test_rows]
    assert tallies.answers(TOPICS.model_copy(update={"test_rows": rows})) == tallies.answers(TOPICS)
    assert None not in tallies.answers(TOPICS)


def test_curves_show_what_training_watches() -> None:
    assert tallies.curve_metric(TOPICS) == "accuracy"
    assert tallies.curve_metric(fake_results.quotes()) == "nll"
    assert "validation loss per token" in texts(learning_plots(fake_results.quotes())[0])


def test_a_mean_curve_has_the_steps_all_seeds_have() -> None:
    assert tallies.curve([[(1, 2.0), (2, 4.0), (3, 1.0)], [(1, 4.0), (3, 3.0)]]) == [(1, 3.0), (3, 2.0)]
    assert tallies.curve([[(1, 2.0)]]) == []


def test_smoothing_keeps_the_ends_and_the_mean() -> None:
    points = [(float(x), float(x * x)) for x in range(102)]
    few = tallies.smoothed(points, 12)
    assert len(few) == 12
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert few[1][1] == pytest.approx(np.mean([y for _, y in points[1:11]]))
    assert tallies.smoothed(points, 200) == points


# Where things stand ------------------------------------------------------------------------------


def test_a_cost_axis_is_logarithmic_with_a_place_for_nothing() -> None:
    scale = cost_scale([0, 10_000, 1_000_000], 300)
    places = [scale.place(value) for value in (0, 10_000, 100_000, 1_000_000)]
    assert places == sorted(places)
    assert places[2] - places[1] == pytest.approx(places[3] - places[2])
    assert scale.gap is not None
    assert places[0] < scale.gap < places[1]
    assert scale.ticks == (0, 10_000, 100_000, 1_000_000)


@pytest.mark.parametrize("values", [[0.0], [0, 0], [5.0], [74, 208], [1, 1e12], [0, 3e-5], [99.9, 100.1]])
def test_every_cost_has_a_place_on_the_axis_and_every_axis_a_tick(values: list[float]) -> None:
    scale = cost_scale(values, 300)
    assert all(0 <= scale.place(value) <= 300 for value in [*values, *scale.ticks])
    assert 1 <= len(scale.ticks) <= 7


def test_points_that_would_cover_each_other_are_moved_apart() -> None:
    points = [(50.0, 10.0), (50.0, 12.0), (50.0, 14.0), (50.0, 100.0), (200.0, 10.0)]
    places = apart(points, 20, 300)
    assert min(abs(a - b) for a, b in pairwise(places[:3])) > 19.5
    assert places[3:] == [50.0, 200.0]
    assert sum(places[:3]) / 3 == pytest.approx(50)
    crowded = apart([(0.0, 0.0)] * 4, 20, 300)
    assert min(crowded) >= 10
    assert min(b - a for a, b in pairwise(sorted(crowded))) > 19.5
