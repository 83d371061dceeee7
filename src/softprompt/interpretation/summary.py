"""What was found, in plain sentences, for the terminal and for the page alike.

It knows findings and how numbers are said; it does not know how anything is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from softprompt.interpretation.inspect import Inspection, PromptInspection
from softprompt.interpretation.says import TokenShift
from softprompt.interpretation.scored import PairedDifference, Scored

__all__ = [
    "TITLES",
    "change",
    "facts",
    "gap_text",
    "headlines",
    "list_of",
    "movers",
    "nearer",
    "relation_lines",
    "score_text",
    "section_lines",
    "share",
    "spaced",
]

TITLES = {
    "near": "What it is near",
    "drift": "How far it travelled",
    "ablation": "What each position does",
    "attention": "Where rows look",
    "words": "Can it be said in words?",
    "says": "What it says",
    "mixing": "On the way from its start",
    "relations": "How the prompts relate",
}


# Numbers -----------------------------------------------------------------------------------------


def share(value: float) -> str:
    """A share as percent."""
    return f"{100 * value:.1f}%"


def change(value: float, *, points: bool = False) -> str:
    """A difference with its sign, in points of a percent or as it is."""
    text = f"{100 * value:+.1f}" if points else f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def gap_text(gap: PairedDifference, *, points: bool = False) -> str:
    """A difference with its 95% interval."""
    low, high = change(gap.low, points=points), change(gap.high, points=points)
    return f"{change(gap.difference, points=points)} ({low} to {high})"


def list_of(positions: Sequence[int]) -> str:
    """Positions, runs of them shortened: ``0-4, 7``."""
    runs: list[list[int]] = []
    for p in sorted(positions):
        if runs and runs[-1][-1] == p - 1:
            runs[-1].append(p)
        else:
            runs.append([p])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def spaced(text: str) -> str:
    """A word with its spaces to be seen: a word with one before it is another word."""
    return text.replace(" ", "\N{OPEN BOX}")


def movers(words: Sequence[TokenShift]) -> list[TokenShift]:
    """Those whose change is to be seen in a tenth of a point, and the first in any case."""
    return [one for number, one in enumerate(words) if number == 0 or abs(one.change) >= 0.0005]


def score_text(scores: Scored) -> str:
    """The accuracy, or for free text the loss per token."""
    return f"{scores.nll:.3f} nats" if scores.accuracy is None else share(scores.accuracy)


# Sentences ---------------------------------------------------------------------------------------


def facts(found: PromptInspection) -> dict[str, str]:
    """What a prompt is, by name of the fact."""
    inspected, card = found.inspected, found.inspected.prompt.card
    learnt = len(inspected.learnt)
    fixed = inspected.positions - learnt
    places = f"{inspected.positions:,} position{'s' * (inspected.positions != 1)}"
    places += f", of which {learnt} learnt" if fixed else ", all learnt"
    said = {
        "kind": f"{inspected.kind}, {places}, {card.trained_parameters:,} numbers",
        "base": card.base.name,
        "front": card.template.front.replace("\n", "\\n"),
        "start": inspected.start_note or "known: made again from its card",
    }
    if found.rows is not None:
        said["rows"] = found.rows.told
    return said


def headlines(found: PromptInspection) -> list[str]:
    """The few sentences that matter most."""
    kept = (section_lines(found, name)[:1] for name in ("ablation", "words", "says", "near", "drift"))
    return [line for lines in kept for line in lines]


def section_lines(found: PromptInspection, section: str) -> list[str]:
    """What a section found, the most telling sentence first."""
    if section in found.left_out:
        return [found.left_out[section]]
    return _LINES[section](found)


def nearer(found: PromptInspection) -> list[int]:
    """Learnt positions that lie nearer to a word than chance would have them."""
    assert found.near is not None
    places = []
    for position in found.near.positions:
        chance = position.stepped or position.random
        best = position.prompt.by_cosine[0].cosine
        if position.position not in found.inspected.words and best > chance.cosine.high:
            places.append(position.position)
    return places


def _near(found: PromptInspection) -> list[str]:
    if found.near is None:
        return []
    learnt, near = found.inspected.learnt, nearer(found)
    against = (
        "random vectors" if found.inspected.start is None else "its start moved as far in random directions"
    )
    none = f"No learnt position lies nearer to a word than {against}: what words it is near says nothing."
    lines = [
        f"{len(near)} of {len(learnt)} learnt positions lie nearer to a word than {against}: {list_of(near)}."
        if near
        else none
    ]
    kept = [
        p.position
        for p in found.near.positions
        if p.start and p.position in learnt and p.start.by_cosine[0].word == p.prompt.by_cosine[0].word
    ]
    if found.inspected.start is not None:
        lines.append(f"{len(kept)} of {len(learnt)} still lie nearest to the word they began as.")
    about = found.clusters
    if about is not None and about.p is not None and about.silhouette is not None:
        sizes = ", ".join(f"[{list_of([learnt[p] for p in one.positions])}]" for one in about.clusters)
        held = "tighter than chance" if about.p < 0.05 else "no tighter than chance"
        chance = f"p = {about.p:.2g}" if about.p >= 0.001 else "p < 0.001"
        lines.append(
            f"Its best grouping ({sizes or 'none'}) is {held}: silhouette {about.silhouette:.2f}, "
            f"{chance} over {about.permutations} permutations."
        )
        begun = found.start_clusters
        if begun is not None and begun.silhouette is not None:
            lines.append(f"Its start had a silhouette of {begun.silhouette:.2f}: that much was there before.")
    return lines


def _drift(found: PromptInspection) -> list[str]:
    if found.prefix_drift is not None:
        sides = {
            side: [layer.relative for layer in found.prefix_drift.layers if layer.side == side]
            for side in ("keys", "values")
        }
        most = max(found.prefix_drift.layers, key=lambda layer: layer.relative)
        return [
            f"Keys moved by {share(statistics.median(sides['keys']))} of their size and values by "
            f"{share(statistics.median(sides['values']))} (medians over layers); most moved the {most.side} "
            f"of layer {most.layer}, by {share(most.relative)}."
        ]
    if found.drift is None:
        return []
    moved = [p for p in found.drift.positions if p.position in found.inspected.learnt]
    low, high = found.drift.vocabulary_norms[5], found.drift.vocabulary_norms[95]
    beyond = [p.position for p in moved if not low <= p.norm <= high]
    norms = (
        f"{len(beyond)} of {len(moved)} learnt positions have a norm outside the middle 90% of words "
        f"({low:.2f} to {high:.2f})."
    )
    steps = [p.relative for p in moved if p.relative is not None]
    if not steps:
        return [norms]
    if not any(steps):
        return ["It never left its start.", norms]
    far = max(moved, key=lambda p: p.relative or 0.0)
    return [
        f"The median position travelled {statistics.median(steps):.2f} times as far as its start lay from "
        f"the mean word; position {far.position} went farthest, {far.relative:.2f} times.",
        norms,
    ]


def _ablation(found: PromptInspection) -> list[str]:
    about = found.ablation
    if about is None:
        return []
    matter = [one.positions[0] for one in about.each if one.matters]
    most = about.each[about.order[0]]
    accuracy = f", accuracy {gap_text(most.accuracy, points=True)} points" if most.accuracy else ""
    lines = [
        f"Position {most.positions[0]} does most: without it the loss changes by {gap_text(most.loss)} nats"
        f"{accuracy}."
    ]
    expected = 0.05 * len(about.each)
    lines.append(
        f"{len(matter)} of {len(about.each)} positions change the loss beyond their 95% interval"
        f"{f' ({list_of(matter)})' if matter else ''}; about {expected:.0f} would by chance alone."
    )
    if about.of_prefix:
        lines.append("Later positions of a KV prefix are learnt values: only rows miss what is hidden.")
    return lines


def _attention(found: PromptInspection) -> list[str]:
    about = found.attention
    if about is None:
        return []
    each = about.positions()
    top = max(range(len(each)), key=lambda p: each[p])
    layers = [sum(layer) for layer in about.last]
    most = max(range(len(layers)), key=lambda number: layers[number])
    sink = (
        "Models park attention they have no use for on the first position they see (Xiao et al. 2023, "
        "attention sinks), so a large share there says little."
    )
    return [
        f"The last token of a row pays {share(sum(each))} of its attention to the prompt (mean over layers), "
        f"most in layer {most} ({share(layers[most])}).",
        f"Position {top} gets most, {share(each[top])}; looking at everything alike would give each "
        f"{share(about.even_last)}.",
        *([sink] if top == 0 else []),
    ]


def _words(found: PromptInspection) -> list[str]:
    if found.words is None:
        return []
    lost = found.words.lost
    gap = lost.accuracy or lost.nll
    worse = gap.high < 0 if lost.accuracy else gap.low > 0
    said = f"{gap_text(gap, points=True)} points of accuracy" if lost.accuracy else f"{gap_text(gap)} nats"
    ending = (
        "so these words do not say what it does" if worse else "which these rows cannot tell from nothing"
    )
    lines = [
        f"Run as a real prompt, its nearest words score {score_text(found.words.scores)} where the prompt "
        f"scores {score_text(found.words.soft)}: {said}, {ending}."
    ]
    if found.wayward is not None:
        about = found.wayward
        lines.append(
            f"A control trained beside an unrelated text scores {score_text(about.scores)} with "
            f"{share(about.matches)} of its positions still nearest to that text."
        )
        if about.rising:
            steps = about.settings.steps
            lines.append(f"It was best at step {about.best_step} of {steps}: with more it may come nearer.")
    return lines


def _says(found: PromptInspection) -> list[str]:
    about = found.shift
    if about is None:
        return []
    words = movers(about.gained)[:3]
    gained = ", ".join(f"{spaced(one.word.text)} {change(one.change, points=True)}" for one in words)
    return [
        f"It moves the next word by {about.kl:.2f} nats ({about.low:.2f} to {about.high:.2f}; KL to the bare "
        f"base) and changes the likeliest one in {share(about.changed)} of rows; most gain {gained} points."
    ]


def _mixing(found: PromptInspection) -> list[str]:
    if found.mixing is None:
        return []
    sums = {one.name: one.scores for one in found.mixing.sums}
    best = min(sums, key=lambda name: sums[name].nll)
    start = f"Its start scores {score_text(sums['0'])}, itself {score_text(sums['1'])}"
    if best == "1":
        return [f"{start}; no other point on the line through both has a lower loss."]
    return [f"{start}; at {best} of the way the loss is lowest, {sums[best].nll:.3f} nats."]


_LINES = {
    "near": _near,
    "drift": _drift,
    "ablation": _ablation,
    "attention": _attention,
    "words": _words,
    "says": _says,
    "mixing": _mixing,
}


def relation_lines(seen: Inspection) -> list[str]:
    """How prompts are alike, a sentence for each kind of likeness."""
    lines = []
    for matrix in (*seen.likeness, *seen.effects):
        values = [v for i, row in enumerate(matrix.values) for v in row[:i] if v is not None]
        if values:
            span = f"{min(values):.2f}" if len(values) == 1 else f"{min(values):.2f} to {max(values):.2f}"
            lines.append(f"{matrix.kind}: {span}. {matrix.about}")
    return [*lines, *seen.notes]
