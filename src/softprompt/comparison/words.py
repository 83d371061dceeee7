"""What a comparison says in sentences: its verdict, what it lacks, what was compared on what.

It makes plain text of results; it does not know where the text is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from softprompt.comparison.results import MethodResult, Pair, Results
from softprompt.comparison.table import comparison, learnt, ranked, scores
from softprompt.evaluation.paired import FLOOR
from softprompt.harmless import clipped
from softprompt.numbers import (
    bytes_text,
    count_text,
    difference_text,
    interval_text,
    is_share,
    metric_name,
    metric_text,
    p_text,
    seconds_text,
)

__all__ = ["SIGNIFICANT", "covered", "facts", "missing", "p_of", "power", "tested", "unbroken", "verdict"]

SIGNIFICANT = 0.05
"""Below this p, corrected for many pairs, a difference is called significant."""


LEVEL = 0.02
"""So far below the best a method may be and still be called level, if its p does not say otherwise: of a
share so many points, of anything else that part of the best."""


def verdict(results: Results) -> str:
    """The cheapest method that is level with the best, then which leads, by how much, and for how sure."""
    scored = [method for method in ranked(results) if scores(method, results.metric) is not None]
    if not scored:
        return "No method has a test score yet."
    leader, rest = scored[0], scored[1:]
    so_far = "" if results.finished else "So far "
    opening = f"{so_far}{_short(leader)} {'leads with' if rest else 'reaches'} {_with_score(results, leader)}"
    if not rest:
        return f"{opening}; there is no other score to hold it against."
    rival = next((method for method in rest if learnt(method) != learnt(leader)), None)
    role = "the best method without training" if learnt(leader) else "the best trained method"
    opening = f"{_cheapest(results, leader, rest)}{opening}"
    if rival is rest[0]:
        return f"{opening}: {_ahead(results, leader, rest[0], f', {role}')}."
    sentence = f"{opening}: {_ahead(results, leader, rest[0])}"
    return f"{sentence}, and {_ahead(results, leader, rival, f', {role}')}." if rival else f"{sentence}."


def _cheapest(results: Results, leader: MethodResult, rest: Sequence[MethodResult]) -> str:
    """A sentence on what takes least to train among the methods level with the best; none were not tested."""
    if not (results.finished and results.pairs):
        return ""
    level = [method for method in rest if _level(results, leader, method)]
    cheapest = min([leader, *level], key=_cost)
    if cheapest is leader:
        return f"No cheaper method is level with the best, {_short(leader)}. "
    pair = comparison(results, leader.name, cheapest.name)
    found = scores(cheapest, results.metric)
    assert pair is not None
    assert found is not None
    gap = difference_text(results.metric, abs(pair.difference), unit=True).lstrip("+")
    below = f"{gap} {'below' if results.higher_is_better else 'above'}"
    below = "as much as" if float(gap.split()[0]) == 0 else below
    seconds, instead = _cost(cheapest)[0], _cost(leader)[0]
    return (
        f"The cheapest method that is level with the best is {_short(cheapest)}: "
        f"{metric_text(results.metric, found.mean)}, {below} {_short(leader)} (p = {pair.p:.2f} by "
        f"itself), after {seconds_text(seconds)} of training instead of {seconds_text(instead)}. "
    )


def _level(results: Results, leader: MethodResult, other: MethodResult) -> bool:
    """Whether nothing says that a method is worse than the best: neither its distance nor its p by itself."""
    pair, best = comparison(results, leader.name, other.name), scores(leader, results.metric)
    if pair is None or best is None:
        return False
    margin = LEVEL if is_share(results.metric) else LEVEL * abs(best.mean)
    return abs(pair.difference) <= margin + 1e-9 and pair.p >= SIGNIFICANT


def _cost(method: MethodResult) -> tuple[float, float]:
    """Seconds of training a run, then those of an answer."""
    costs = [run.costs for run in method.runs]
    return fmean(c.train_seconds for c in costs), fmean(c.latency_seconds or 0.0 for c in costs)


def _with_score(results: Results, method: MethodResult) -> str:
    found = scores(method, results.metric)
    assert found is not None
    name = metric_name(results.metric)
    article = "an" if name[0] in "aeiouAEIOUFM" and not name.startswith("macro") else "a"
    interval = interval_text(results.metric, found.low, found.high)
    bracket = f" (95% interval {interval})" if interval else ""
    return f"{article} {name} of {metric_text(results.metric, found.mean)}{bracket}"


def _ahead(results: Results, leader: MethodResult, other: MethodResult, role: str = "") -> str:
    """How far in front of another method the leader is, and whether that may be chance."""
    pair = comparison(results, leader.name, other.name)
    first, second = scores(leader, results.metric), scores(other, results.metric)
    assert first is not None
    assert second is not None
    gap = abs(pair.difference if pair else first.mean - second.mean)
    text = difference_text(results.metric, gap, unit=True).lstrip("+")
    if float(text.split()[0]) == 0:
        return f"level with {_short(other)}{role}"
    return f"{text} {_direction(results)} {_short(other)}{role}, {_significance(pair)}"


def _short(method: MethodResult) -> str:
    return clipped(method.name, 60)


def _direction(results: Results) -> str:
    return "ahead of" if results.higher_is_better else "below"


def _significance(pair: Pair | None) -> str:
    if pair is None:
        return "which was not tested for significance"
    clear = "" if pair.corrected < SIGNIFICANT else "not "
    return f"which is {clear}significant ({p_of(pair)})"


def unbroken(sentence: str) -> str:
    """The sentence with p values that stay on one line."""
    return re.sub(r"p ([<=]) (?=\d)", "p\u00a0\\1\u00a0", sentence)


# What intervals and p cover ----------------------------------------------------------------------


def p_of(pair: Pair) -> str:
    """The corrected p of a pair, such as ``p = 0.031``; ``p < ...`` where no draw said otherwise."""
    return p_text(pair.corrected, at_most=pair.test == "bootstrap" and pair.p <= FLOOR)


def covered(results: Results) -> str:
    """What the intervals of the scores cover, in a sentence or two."""
    single = [method for method in results.methods if len(method.runs) == 1]
    if len(single) == len([method for method in results.methods if method.runs]):
        return "Intervals cover other test rows, not other seeds: there is one run of each method."
    said = "Intervals cover other test rows and other seeds"
    return f"{said}; of {_listed(single)}, with one run, rows alone." if single else f"{said}."


def tested(results: Results) -> str:
    """How p values came about, in a sentence or two."""
    kinds = [_TESTS[test] for test in sorted({pair.test for pair in results.pairs})]
    said = f"p by the {' or the '.join(kinds)}"
    if len(results.pairs) > 1:
        said += f", corrected for all {len(results.pairs)} pairs together (Holm)"
    return f"{said}; below {SIGNIFICANT} a difference is called significant."


def power(results: Results) -> str:
    """What difference this comparison could have seen, in a sentence; nothing where there are no pairs."""
    widths = [pair.high - pair.low for pair in results.pairs]
    if not widths:
        return ""
    visible = difference_text(results.metric, _SEEN_OF_WIDTH * median(widths), unit=True).lstrip("+")
    return (
        f"A true difference of about {visible} would be seen (p below {SIGNIFICANT} by itself) in 4 of 5 "
        "such comparisons; smaller ones are often missed."
    )


_SEEN_OF_WIDTH = (1.96 + 0.84) / (2 * 1.96)
"""Of the width of a 95% interval, what is seen in 4 of 5 comparisons."""

_TESTS = {"mcnemar": "exact McNemar test", "bootstrap": "paired bootstrap over rows and seeds"}


def _listed(methods: Sequence[MethodResult]) -> str:
    *names, last = map(_short, methods)
    return f"{', '.join(names)} and {last}" if names else last


# What is missing ---------------------------------------------------------------------------------


def missing(results: Results) -> list[str]:
    """A sentence for everything that is not there but should be; empty for a whole comparison."""
    failed = [method for method in results.methods if method.trouble]
    found = [f"{method.name} has no result: {method.trouble.rstrip('.')}." for method in failed]
    seeds = {run.seed for method in results.methods for run in method.runs}
    for method in results.methods:
        absent = sorted(seeds - {run.seed for run in method.runs})
        if not method.trouble and not method.runs:
            found.append(f"{method.name} has not been run yet.")
        elif not method.trouble and method.trained and absent:
            word = "seed" if len(absent) == 1 else "seeds"
            found.append(f"{method.name} lacks {word} {', '.join(map(str, absent))}.")
    known = {method.name for method in results.methods}
    found += [f"{name} has not been run yet." for name in _planned(results.settings) if name not in known]
    if not results.finished and not found:
        found.append("Some runs are still to come.")
    return found


def _planned(settings: Mapping[str, Any]) -> list[str]:
    """The names of the methods that the settings ask for."""
    methods = settings.get("methods")
    entries = methods if isinstance(methods, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str)]


# What was compared -------------------------------------------------------------------------------


def facts(results: Results) -> dict[str, str]:
    """What was compared on what, a line each."""
    trials = sum(len(method.trials) for method in results.methods)
    spent = sum(trial.seconds for method in results.methods for trial in method.trials)
    seeds = sorted({run.seed for method in results.methods for run in method.runs})
    found = {"base": _base(results.base)}
    found |= {f"{split} rows": _data(about) for split, about in results.data.items()}
    if "test" not in results.data:
        found["test rows"] = count_text(len(results.test_rows))
    if results.labels is not None:
        found["labels"] = _labels(results.labels)
    found["methods"] = f"{len(results.methods)}, of which {sum(map(learnt, results.methods))} trained"
    found["seeds"] = ", ".join(map(str, seeds)) or "none yet"
    found["trials"] = f"{trials}, in {seconds_text(spent)}" if spent else str(trials)
    found["hardware"] = _hardware(results.hardware)
    found["versions"] = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    found["made"] = results.created.replace("T", " ").removesuffix("Z").removesuffix("+00:00")[:19] + " UTC"
    return {name: text for name, text in found.items() if text}


def _base(base: Mapping[str, Any]) -> str:
    parts = [str(base["name"])] if base.get("name") else []
    if isinstance(base.get("parameters"), int):
        parts.append(f"{count_text(base['parameters'])} parameters")
    if base.get("fingerprint"):
        parts.append(f"fingerprint {str(base['fingerprint'])[:16]}")
    return ", ".join(parts)


def _data(about: Mapping[str, Any]) -> str:
    rows = about.get("rows")
    parts = [count_text(rows) if isinstance(rows, int) else "unknown number"]
    if about.get("origin"):
        parts.append(f"of {about['origin']}")
    return " ".join(parts) + (f" (digest {str(about['digest'])[:12]})" if about.get("digest") else "")


def _labels(labels: list[str]) -> str:
    shown = ", ".join(labels[:12])
    return f"{len(labels)}: {shown}" + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")


def _hardware(hardware: Mapping[str, Any]) -> str:
    known = []
    for name, value in hardware.items():
        if value is None:
            continue
        if name.endswith("_bytes") and isinstance(value, int):
            known.append(f"{bytes_text(value)} {name.removesuffix('_bytes')}")
        elif name == "cores":
            known.append(f"{value} cores")
        else:
            known.append(str(value) if name == "processor" else f"{name} {value}")
    return ", ".join(known)
