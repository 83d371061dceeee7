"""What a suite says in sentences: who leads on each base, and what the means cover.

It does not know where they are shown.
"""

from __future__ import annotations

from pathlib import Path

from softprompt.comparison.suite_results import BaseFindings, SuiteResults
from softprompt.comparison.table import turned
from softprompt.comparison.words import SIGNIFICANT, p_of
from softprompt.harmless import clipped
from softprompt.numbers import difference_text, interval_text, metric_name, metric_text

__all__ = ["averages", "missing_from", "shown_base", "verdicts"]


def shown_base(name: str) -> str:
    """A base as tables name it: of a folder its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def verdicts(results: SuiteResults) -> list[str]:
    """A sentence for every base that has a mean: who leads, and how far."""
    return [_verdict(results, base) for base in results.bases if base.means]


def _verdict(results: SuiteResults, base: BaseFindings) -> str:
    first, *others = [method for method in results.ranked(base) if method in base.means]
    best, metric = base.means[first], results.shown
    interval = interval_text(metric, best.low, best.high)
    said = (
        f"On {shown_base(base.name)} {clipped(first, 60)} leads with {metric_text(metric, best.mean)} "
        f"(95% interval {interval})"
    )
    if not others:
        return f"{said}."
    second = others[0]
    found = [p for p in base.pairs if {p.first, p.second} == {first, second}]
    if not found:
        return f"{said}."
    pair = found[0] if found[0].first == first else turned(found[0])
    gap = difference_text(metric, abs(pair.difference), unit=True).lstrip("+")
    if float(gap.split()[0]) == 0:
        return f"{said}, level with {clipped(second, 60)}."
    clear = "" if pair.corrected < SIGNIFICANT else "not "
    side = "ahead of" if results.higher_is_better else "below"
    return f"{said}: {gap} {side} {clipped(second, 60)}, which is {clear}significant ({p_of(pair)})."


def averages(results: SuiteResults) -> str:
    """What the means are of, and what their intervals cover."""
    names = [task for task in results.tasks if task]
    if len(names) < 2:
        return "Intervals cover other test rows and, of methods with several runs, other seeds."
    of = "headline scores" if results.metric == "score" else f"the {metric_name(results.metric)}"
    said = (
        f"Means are of {of} over data sets; intervals cover other rows and seeds of these {len(names)}, "
        "not other data sets."
    )
    if results.left_out:
        said += f" Left out, for their scores are no shares: {', '.join(results.left_out)}."
    return said


def missing_from(results: SuiteResults) -> list[str]:
    """A sentence for everything that should be there and is not."""
    found = [
        f"{member.name} is not finished."
        for base in results.bases
        for member in base.members
        if not member.finished
    ]
    found += [
        f"{method} has no mean on {shown_base(base.name)}: it has no score on "
        f"{', '.join(m.name for m in base.members if method not in m.scores)}."
        for base in results.bases
        for method in results.methods
        if method not in base.means and any(method not in m.scores for m in base.members)
    ]
    if not results.finished and not found:
        found.append("Some comparisons are still to come.")
    return found
