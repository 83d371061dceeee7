"""Which claims about soft prompts hold on prompts of one job: ``softprompt inspect``, and a verdict for each.

    python benchmarks/claims.py SEED0 SEED1 SEED2 --data validation.jsonl --class-words negative,positive \
        --wayward "a text about something else"

The prompts are those a comparison saved (``comparisons/sst2/prompts``) or any others of one job. A claim is
asked of every prompt by a rule that is fixed here; what was found is kept beside the verdict.
Writes ``results/inspect/NAME.json``, the maps of the vocabulary left out.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe
from softprompt.checkpoints.freeze import load_base
from softprompt.interpretation.inspect import Inspection, InspectOptions, PromptInspection, inspect
from softprompt.interpretation.scored import ScoreDifference
from softprompt.listener import Listener

RESULTS = Path(__file__).parent.parent / "results" / "inspect"
SURE = 0.05
"""The chance a test may take of seeing what is not there."""
ARRANGEMENTS = 10_000


@dataclass(frozen=True)
class Found:
    """What one prompt says to a claim: whether it holds, and the figures, in words."""

    holds: bool
    figures: str


@dataclass(frozen=True)
class Claim:
    """Something that is said of soft prompts.

    Attributes:
        says: the claim.
        source: who says it.
        rule: when it counts as holding for a prompt.
        test: that rule; None where the prompt does not have what it needs.
    """

    says: str
    source: str
    rule: str
    test: Callable[[PromptInspection, Sequence[str]], Found | None]


def tight_clusters(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    found = one.clusters
    if found is None or found.chance is None or found.p is None:
        return None
    chance = found.chance
    permuted = f"{chance.low:.2f} to {chance.high:.2f} by permutation"
    begun = one.start_clusters
    start = f"; its start {begun.silhouette:.2f}" if begun and begun.silhouette is not None else ""
    figures = f"silhouette {found.silhouette:.2f}, {permuted}, p {found.p:.3f}{start}"
    return Found(found.p < SURE, figures)


def nearer_than_moved(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    if one.near is None or any(p.stepped is None for p in one.near.positions):
        return None
    pairs = [(p.prompt.by_cosine[0].cosine, p.stepped.cosine.high) for p in one.near.positions if p.stepped]
    count = sum(cosine > moved for cosine, moved in pairs)
    kept = sum(p.start is not None and _first(p.start) == _first(p.prompt) for p in one.near.positions)
    total = len(one.near.positions)
    figures = f"{count} of {total} positions; {kept} still nearest to the word they began as"
    return Found(count > total / 2, figures)


def class_words_near(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    if one.near is None or any(p.start is None for p in one.near.positions):
        return None
    now = sum(_has(p.prompt, class_words) for p in one.near.positions)
    before = sum(_has(p.start, class_words) for p in one.near.positions)
    return Found(now > before, f"{now} positions, {before} before training")


def wayward(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    if one.wayward is None or one.wayward.against is None:
        return None
    found, text = one.wayward, one.wayward.text_scores.accuracy
    gap = found.against
    assert gap is not None
    assert gap.accuracy is not None
    figures = (
        f"{found.matches:.0%} of the positions nearest to the text's words; accuracy "
        f"{found.scores.accuracy:.1%} (the text itself {text:.1%}), {_gap(gap)} points beside the prompt"
    )
    return Found(found.matches >= 0.9 and gap.accuracy.high >= 0, figures)


def later_matter_less(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    if one.ablation is None:
        return None
    losses = [hidden.loss.difference for hidden in one.ablation.each]
    ranks = sorted(range(len(losses)), key=lambda place: losses[place])
    rho = statistics.correlation(_inverse(ranks), range(len(losses)))
    draw, as_low = random.Random(0), 1
    for _ in range(ARRANGEMENTS):
        as_low += statistics.correlation(draw.sample(ranks, len(ranks)), range(len(losses))) <= rho
    p = as_low / (1 + ARRANGEMENTS)
    top = ", ".join(f"{place} ({losses[place]:+.2f} nats)" for place in one.ablation.order[:3])
    return Found(p < SURE, f"rank correlation {rho:+.2f}, p {p:.3f}; most: {top}")


def words_fall_short(one: PromptInspection, class_words: Sequence[str]) -> Found | None:
    if one.words is None:
        return None
    tried = [("nearest words", one.words.scores.accuracy, one.words.lost)]
    if one.search is not None:
        tried.append(("words searched for", one.search.found.accuracy, one.search.lost))
    figures = "; ".join(f"{name} {accuracy:.1%} ({_gap(lost)} points)" for name, accuracy, lost in tried)
    return Found(all(lost.accuracy is not None and lost.accuracy.high < 0 for _, _, lost in tried), figures)


CLAIMS = (
    Claim(
        "Its vectors form clusters",
        "Lester et al. 2021, 7",
        f"best cut against permuted coordinates, p below {SURE}",
        tight_clusters,
    ),
    Claim(
        "It lies near words, nearer than chance",
        "Lester et al. 2021, 7",
        "most positions nearer to a word than 97.5% of equally long random steps from their start",
        nearer_than_moved,
    ),
    Claim(
        "Class words come near",
        "Lester et al. 2021, 7",
        "more positions with a class word among the five nearest than before training",
        class_words_near,
    ),
    Claim(
        "What is near need not mean anything (waywardness)",
        "Khashabi et al. 2022",
        "a control beside an unrelated text (90% of its positions nearest to it) is not significantly worse",
        wayward,
    ),
    Claim(
        "Later positions matter less",
        "often said of prefixes",
        f"falling rank correlation of place and loss when hidden, p below {SURE} by permutation",
        later_matter_less,
    ),
    Claim(
        "It cannot be said in words",
        "the tutorials",
        "its nearest words, and words searched for, score significantly worse",
        words_fall_short,
    ),
)


def judge(inspection: Inspection, class_words: Sequence[str]) -> list[dict[str, Any]]:
    """Every claim held against every prompt."""
    judged = []
    for claim in CLAIMS:
        found = {one.inspected.name: claim.test(one, class_words) for one in inspection.prompts}
        each = {
            name: {"holds": one.holds, "figures": one.figures}
            for name, one in found.items()
            if one is not None
        }
        if each:
            about = {"claim": claim.says, "source": claim.source, "rule": claim.rule}
            judged.append(about | {"holds": sum(bool(one["holds"]) for one in each.values()), "each": each})
    return judged


def _inverse(order: Sequence[int]) -> list[int]:
    """The rank of each place, from the places in order of rank."""
    return sorted(range(len(order)), key=lambda place: order[place])


def _first(nearness: Any) -> int:
    return int(nearness.by_cosine[0].word.id)


def _has(nearness: Any, class_words: Sequence[str]) -> bool:
    return any(near.word.text.strip().lower() in class_words for near in nearness.by_cosine)


def _gap(against: ScoreDifference) -> str:
    gap = against.accuracy
    assert gap is not None
    return f"{100 * gap.difference:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", help="saved prompts of one job, by name or folder")
    parser.add_argument("--library", default="prompts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", help="rows to try them on; those they were validated on by default")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--class-words", default="", help="by commas, in small letters")
    parser.add_argument("--wayward", help="an unrelated text for the control")
    parser.add_argument("--search", action="store_true", help="search for words, too")
    parser.add_argument("--out", default="sst2", help="name of the result")
    asked = parser.parse_args()
    options = InspectOptions(data=asked.data, rows=asked.rows, wayward=asked.wayward, search=asked.search)
    base = load_base(asked.model)

    def progress(what: str, done: int, total: int) -> None:
        if done == 0:
            print(what, flush=True)

    listener = Listener(progress=progress)
    found = inspect(asked.names, base, asked.library, options, listener=listener)
    claims = judge(found, asked.class_words.split(","))
    for claim in claims:
        print(f"{claim['claim']}: {claim['holds']} of {len(claim['each'])}")
        print("".join(f"  {name}: {one['figures']}\n" for name, one in claim["each"].items()), end="")
    told = found.to_json()
    for one in told["prompts"]:
        one.pop("map", None)
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"claims": claims, "inspection": told, **describe()}
    (RESULTS / f"{asked.out}.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
