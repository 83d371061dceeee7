"""Made-up comparisons whose numbers agree: predictions are drawn, scores are counted from them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any, Literal

from softprompt.comparison.results import (
    Costs,
    MethodResult,
    Metric,
    Pair,
    Results,
    Run,
    Seeds,
    TestRow,
    Trial,
)
from softprompt.evaluation.intervals import wilson

TOPICS = ["business", "entertainment", "politics", "sport", "tech"]

_SUBJECTS = {
    "business": ["Shares", "The central bank", "Oil", "A carmaker", "The airline"],
    "entertainment": ["The festival jury", "A pop star", "The sequel", "A sitcom", "The orchestra"],
    "politics": ["The minister", "Parliament", "The opposition", "A by-election", "The chancellor"],
    "sport": ["The striker", "A tie-break", "The relay team", "The coach", "A late try"],
    "tech": ["The handset", "A browser", "The search firm", "A console", "The satellite"],
}
_EVENTS = [
    "surprises everybody",
    "faces a long delay",
    "wins a second chance",
    "divides the critics",
    "gets a cautious welcome",
    "is back after a year",
    "falls short again",
    "breaks a record",
]


@dataclass(frozen=True)
class Kind:
    """How a method of the fakes behaves."""

    name: str
    kind: str
    skill: float
    parameters: int = 0
    seconds: float = 0.0
    bytes: int = 400
    trials: tuple[dict[str, Any], ...] = ()


_RATES = tuple({"train.learning_rate": rate} for rate in (0.003, 0.01, 0.03))
_STARTS = tuple(
    {"train.learning_rate": rate, "method.init": init}
    for init in ("text", "random")
    for rate in (0.003, 0.01, 0.03)
)
_FRONTS = tuple({"method.front": text} for text in ("Topics: ", "Name the topic of the headline. "))
KINDS = (
    Kind("untuned", "text", 0.7),
    Kind("instruction", "text", 1.2, bytes=460, trials=_FRONTS),
    Kind("4 demonstrations", "text", 1.5, bytes=890),
    Kind("soft prompt", "prompt-tuning", 2.3, 11_520, 83.0, 46_200, _STARTS),
    Kind("KV prefix from demonstrations", "prefix-tuning", 2.75, 737_280, 75.0, 2_951_000, _RATES),
    Kind("LoRA r8", "lora", 2.7, 2_442_240, 121.0, 9_780_000, _RATES),
    Kind("full fine-tuning", "full", 2.5, 134_515_008, 208.0, 538_090_000, _RATES),
)


def topics(
    rows: int = 400,
    seeds: Sequence[int] = (0, 1, 2),
    kinds: Sequence[Kind] = KINDS,
    labels: Sequence[str] = TOPICS,
) -> Results:
    """A comparison on labels: accuracy, ECE and loss, confidences, perturbations, trials and pairs."""
    draw = random.Random(5)
    true = [draw.randrange(len(labels)) for _ in range(rows)]
    hardness = [draw.gauss(0, 1.1) for _ in range(rows)]
    methods = [_labelled(draw, kind, true, hardness, seeds, len(labels)) for kind in kinds]
    test_rows = [TestRow(input=_headline(draw, labels[label]), answer=labels[label]) for label in true]
    return _results("bbc-topics", "accuracy", list(labels), test_rows, methods)


def _headline(draw: random.Random, label: str) -> str:
    subjects = _SUBJECTS.get(label, [f"Something about {label}"])
    return f"Headline: {draw.choice(subjects)} {draw.choice(_EVENTS)}\nTopic:"


def _labelled(
    draw: random.Random, kind: Kind, true: list[int], hardness: list[float], seeds: Sequence[int], labels: int
) -> MethodResult:
    runs = []
    for seed in seeds if kind.parameters else seeds[:1]:
        skill = kind.skill + draw.gauss(0, 0.06)
        chances = [1 / (1 + math.exp(-1.2 * (skill - 0.7 - hard))) for hard in hardness]
        found = [
            t if draw.random() < c else _confused(draw, t, labels) for t, c in zip(true, chances, strict=True)
        ]
        sure = [min(0.999, max(1 / labels, 0.25 + 0.75 * c + draw.gauss(0, 0.05))) for c in chances]
        runs.append(_run(draw, kind, seed, true, found, sure))
    return _method(draw, kind, runs, "accuracy")


def _confused(draw: random.Random, label: int, labels: int) -> int:
    """A wrong label, most often the one that is easily taken for it."""
    near = (label + 4) % labels if draw.random() < 0.6 else draw.randrange(labels)
    return near if near != label else (label + 1) % labels


def _run(
    draw: random.Random, kind: Kind, seed: int, true: list[int], found: list[int], sure: list[float]
) -> Run:
    hits = sum(map(int.__eq__, true, found))
    accuracy = hits / len(true)
    low, high = wilson(hits, len(true))
    loss = 1.7 * (1 - accuracy) + 0.15
    test = {
        "accuracy": Metric(value=accuracy, low=low, high=high),
        "nll": Metric(value=loss, low=loss - 0.05, high=loss + 0.06),
        "ece": Metric(value=abs(fmean(sure) - accuracy)),
    }
    return Run(
        seed=seed,
        costs=_costs(draw, kind),
        **_learning(draw, kind, accuracy, 0.5),
        validation={"accuracy": Metric(value=min(1.0, accuracy + 0.012), low=low, high=high)},
        test=test,
        perturbed={"typos": accuracy - 0.06, "upper case": accuracy - 0.025, "no spaces": accuracy - 0.09},
        predictions=found,
        confidences=sure,
        row_scores=[float(t == p) for t, p in zip(true, found, strict=True)],
    )


def _costs(draw: random.Random, kind: Kind) -> Costs:
    trained = bool(kind.parameters)
    return Costs(
        trained_parameters=kind.parameters,
        artifact_bytes=kind.bytes,
        positions=20 if trained else 0,
        train_seconds=kind.seconds * draw.uniform(0.95, 1.05),
        peak_memory_bytes=int(9e8 + 9 * kind.parameters) if trained else None,
        latency_seconds=0.031 + kind.skill * 0.002,
    )


def _learning(draw: random.Random, kind: Kind, end: float, start: float) -> dict[str, Any]:
    if not kind.parameters:
        return {"steps": 0, "best_step": 0, "losses": [], "validations": []}
    steps = 96
    losses = [(s, 0.25 + 1.6 * math.exp(-s / 18) + draw.gauss(0, 0.09)) for s in range(1, steps + 1)]
    valid = [
        (s, end + (start - end) * math.exp(-s / 20) + draw.gauss(0, 0.008)) for s in range(0, steps + 1, 8)
    ]
    pick = max if end > start else min
    return {
        "steps": steps,
        "best_step": pick(valid, key=lambda p: p[1])[0],
        "losses": losses,
        "validations": valid,
    }


def _method(draw: random.Random, kind: Kind, runs: list[Run], metric: str) -> MethodResult:
    best = fmean(run.test[metric].value for run in runs)
    trials = [_trial(kind, settings, best, at, metric) for at, settings in enumerate(kind.trials)]
    if len(trials) > 4:
        failed = Trial(
            settings=kind.trials[-1], validation={}, seconds=4.0, trouble="The loss became NaN at step 7."
        )
        trials[-1] = failed
    summary = {name: _seeds(runs, name) for name in runs[0].test}
    return MethodResult(
        name=kind.name,
        kind=kind.kind,
        trained=bool(kind.parameters),
        trials=trials,
        runs=runs,
        summary=summary,
    )


def _trial(kind: Kind, settings: dict[str, Any], best: float, at: int, metric: str) -> Trial:
    value = best - 0.03 * abs(at - 1)
    found = Metric(value=value, low=value - 0.03, high=value + 0.025)
    return Trial(settings=settings, validation={metric: found}, seconds=kind.seconds, chosen=at == 1)


def _seeds(runs: list[Run], name: str) -> Seeds:
    values = [run.test[name].value for run in runs]
    mean, half = fmean(values), 0.03 if name != "ece" else 0.01
    spread = stdev(values) if len(values) > 1 else 0.0
    return Seeds(mean=mean, spread=spread, low=mean - half, high=mean + 0.9 * half)


def _results(
    name: str,
    metric: str,
    labels: list[str] | None,
    rows: list[TestRow],
    methods: list[MethodResult],
    higher: bool = True,
) -> Results:
    pairs = [_pair(metric, labels, rows, a, b) for a, b in combinations(methods, 2)]
    digest = "3f0c9a7be1d25c4488"
    return Results(
        name=name,
        created="2026-03-14T09:26:53+00:00",
        finished=True,
        metric=metric,
        higher_is_better=higher,
        labels=labels,
        test_rows=rows,
        data={
            "train": {"origin": "bundled:bbc-news/train", "rows": 500, "digest": digest},
            "validation": {"origin": "bundled:bbc-news/train", "rows": 200, "digest": digest},
            "test": {"origin": "bundled:bbc-news/test", "rows": len(rows), "digest": digest},
        },
        methods=methods,
        pairs=pairs,
        notes=["Settings were chosen on the first seed by validation; test rows were read once."],
        settings={"name": name, "seeds": [0, 1, 2], "data": {"input": "Headline: {text}\nTopic:"}},
        versions={"softprompt": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        hardware={
            "processor": "Xeon",
            "cores": 2,
            "memory_bytes": 25_769_803_776,
            "device": "cpu",
            "dtype": "float32",
        },
        base={"name": "smollm2-135m", "fingerprint": "9f2b66d0c1aa47e5" * 4, "parameters": 134_515_008},
    )


def _pair(
    metric: str, labels: list[str] | None, rows: list[TestRow], a: MethodResult, b: MethodResult
) -> Pair:
    difference = a.summary[metric].mean - b.summary[metric].mean
    if labels is None:
        half, test = 0.02, "bootstrap"
        p = math.erfc(abs(difference) / (half / 1.96) / math.sqrt(2))
    else:
        p, test, half = _mcnemar(labels, rows, a.runs[0], b.runs[0]), "mcnemar", 0.6 / math.sqrt(len(rows))
    kind: Literal["mcnemar", "bootstrap"] = "mcnemar" if test == "mcnemar" else "bootstrap"
    low, high = difference - half, difference + half
    return Pair(first=a.name, second=b.name, difference=difference, low=low, high=high, p=p, test=kind)


def _mcnemar(labels: list[str], rows: list[TestRow], a: Run, b: Run) -> float:
    """Exact two-sided p of the rows on which only one of two is right."""
    true = [labels.index(row.answer) for row in rows]
    only = [(x == t, y == t) for x, y, t in zip(a.predictions, b.predictions, true, strict=True)]
    first, second = only.count((True, False)), only.count((False, True))
    n, k = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def quotes(metric: str = "rougeL", rows: int = 46, seeds: Sequence[int] = (0, 1)) -> Results:
    """A comparison on free text; with ``nll`` less is better."""
    draw = random.Random(7)
    higher = metric != "nll"
    words = ["work", "love", "time", "friend", "night", "answer", "river", "patience", "courage", "garden"]
    test_rows = [
        TestRow(input=f"The best way to {draw.choice(words)} is", answer=" is love.") for _ in range(rows)
    ]
    methods = []
    for kind in KINDS:
        runs = [
            _written(draw, kind, seed, metric, test_rows, words)
            for seed in (seeds if kind.parameters else seeds[:1])
        ]
        methods.append(_method(draw, kind, runs, metric))
    return _results("quotes", metric, None, test_rows, methods, higher)


def _written(
    draw: random.Random, kind: Kind, seed: int, metric: str, rows: list[TestRow], words: list[str]
) -> Run:
    end = 0.12 + 0.1 * kind.skill + draw.gauss(0, 0.005)
    end = 4 - 4 * end if metric == "nll" else end
    score = Metric(value=end, low=end - 0.02, high=end + 0.02)
    return Run(
        seed=seed,
        costs=_costs(draw, kind),
        **_learning(draw, kind, 3.5 - 0.4 * kind.skill, 4.0),
        validation={metric: score},
        test={metric: score},
        predictions=[f" through {draw.choice(words)}, says {kind.name} with seed {seed}." for _ in rows],
    )


def intents(rows: int = 300) -> Results:
    """A comparison on 150 labels."""
    return topics(rows, (0,), KINDS[2:5], [f"intent_{number:03}_of_many" for number in range(150)])


HOSTILE = (
    "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> \"quoted\" 'too' & &amp; "
    "`x` $x^2$ {{ 7*7 }} \u202egnp.exe\u202c \u2066iso\u2069 \x00\x07\x1b[31m\x85 \u2028\u2029 "
    "\ud800 \ufeff 中文 😀 #010101"
)
"""What a stranger may write into a row, a label or a name."""


def hostile() -> Results:
    """A comparison whose every text is hostile."""
    found = topics(60, (0,))
    labels = [f"{HOSTILE} {number}" for number in range(5)]
    names = {method.name: f"{method.name} {HOSTILE}" for method in found.methods}
    rows = [TestRow(input=HOSTILE + r.input, answer=labels[TOPICS.index(r.answer)]) for r in found.test_rows]
    return found.model_copy(
        update={
            "name": HOSTILE,
            "labels": labels,
            "test_rows": rows,
            "methods": [m.model_copy(update=_hostile_parts(m, names[m.name])) for m in found.methods],
            "pairs": [
                p.model_copy(update={"first": names[p.first], "second": names[p.second]}) for p in found.pairs
            ],
            "notes": [HOSTILE],
            "settings": {HOSTILE: [HOSTILE]},
            "versions": {HOSTILE: HOSTILE},
            "hardware": {HOSTILE: HOSTILE},
            "base": {"name": HOSTILE, "fingerprint": HOSTILE},
            "data": {HOSTILE: {"origin": HOSTILE, "rows": 3, "digest": HOSTILE}},
        }
    )


def _hostile_parts(method: MethodResult, name: str) -> dict[str, Any]:
    trials = [t.model_copy(update={"settings": {HOSTILE: HOSTILE}}) for t in method.trials]
    runs = [run.model_copy(update={"perturbed": {HOSTILE: 0.1}}) for run in method.runs]
    return {"name": name, "kind": HOSTILE, "trials": trials, "runs": runs}


def unfinished() -> Results:
    """A comparison that was stopped: a method failed, one has not run, one lacks seeds."""
    found = topics(80, (0, 1, 2))
    changes: dict[str, dict[str, Any]] = {
        "LoRA r8": {
            "runs": [],
            "summary": {},
            "trouble": "The loss became NaN at step 7.",
        },
        "full fine-tuning": {"runs": [], "summary": {}, "trials": []},
        "soft prompt": {"runs": found.methods[3].runs[:1], "summary": {}},
    }
    methods = [m.model_copy(update=changes.get(m.name, {})) for m in found.methods]
    return found.model_copy(update={"methods": methods, "pairs": [], "finished": False})
