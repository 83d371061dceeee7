"""The README of an artifact, in the model hub's convention: knows a card and how to show it safely.

Every value of the card is quoted, so that text from a stranger cannot pose as YAML, Markdown or code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from softprompt.checkpoints import catalog
from softprompt.harmless import code_span, json_block, quoted, table
from softprompt.library.card import CARD_FILE, Card
from softprompt.library.changed import FRONT_FILE
from softprompt.library.wording import noun

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_RESULTS = ("accuracy", "macro_f1", "nll")
_DTYPES = ("float32", "bfloat16", "float16")


class _KindText(NamedTuple):
    """What the README says differently of artifacts that differ in kind."""

    summary: str
    """How the sentence that says what it is begins; fields: noun, positions."""
    behind: str
    """How it goes on where positions stand in front of a changed model; field: positions."""
    library: str
    """The library, by the hub's name, that opens it beside softprompt."""
    code: Callable[[Card], str]


def model_card(card: Card, opened_by: str = "peft") -> str:
    """The content of ``README.md``: front matter, what the artifact does, its scores, and how to use it.

    opened_by: the library that reads it beside softprompt; where that is "softprompt", none does.
    """
    look = _look(card)
    alone = opened_by == "softprompt"
    sections = (
        _front_matter(card, "softprompt" if alone else look.library),
        f"# {code_span(card.name)}",
        _summary(card),
        "## What it does",
        "Braces stand for the columns of a row; the model reads front and input, and writes the target.",
        json_block(_template(card)),
        "## Scores",
        _scores(card),
        "## Use",
        f"Run this beside the folder {code_span(card.name)} that holds this file.",
        f"With softprompt:\n\n```python\n{_softprompt_code(card)}\n```",
        _ALONE if alone else f"With {_TITLES[look.library]}:\n\n```python\n{look.code(card)}\n```",
        "## Training",
        _training(card),
        "The whole configuration:",
        json_block(card.settings),
        "## Data",
        _data(card),
        "## Made with",
        table(["what", "version"], [[code_span(k), code_span(v)] for k, v in card.versions.items()]),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(card: Card, library: str) -> str:
    lines = ["---"]
    name = card.base.name  # the hub refuses any value but an id, so go by its looks
    if _HUB_ID.fullmatch(name) and name not in catalog.names() and not name.endswith(".gguf"):
        lines.append(f"base_model: {quoted(card.base.name)}")
    tags = ["softprompt", card.kind, card.base.model_type]
    lines += [f"library_name: {library}", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {quoted(tag)}" for tag in dict.fromkeys(tags) if tag]
    return "\n".join([*lines, *_results(card), "---"])


def _results(card: Card) -> list[str]:
    """The scores as the hub's leaderboards read them: those on test rows, or else on validation rows."""
    split = "test" if "test" in card.scores else "validation"
    scores, about = card.scores.get(split, {}), card.data.get(split)
    metrics = [(name, scores[name]) for name in _RESULTS if isinstance(scores.get(name), float)]
    if about is None or not metrics:
        return []
    task = "text-generation" if card.template.labels is None else "text-classification"
    return [
        "model-index:",
        f"- name: {quoted(card.name)}",
        "  results:",
        f"  - task:\n      type: {task}",
        f"    dataset:\n      name: {quoted(about.origin)}\n      type: {quoted(about.origin)}",
        f"      split: {split}",
        "    metrics:",
        *(f"    - type: {name}\n      value: {value!r}" for name, value in metrics),
    ]


def _summary(card: Card) -> str:
    base = card.base
    look, positions = _look(card), f"{card.positions:,}"
    what = look.summary.format(noun=noun(card.kind), positions=positions)
    behind = look.behind.format(positions=positions) if card.positions else ""
    stored = "" if base.quantisation == "none" else f", {code_span(base.quantisation)}"
    return (
        f"A {what} language model {code_span(base.name)} "
        f"({code_span(base.model_type)}, {code_span(base.dtype)}{stored}){behind}; "
        f"{card.trained_parameters:,} numbers were learnt. It belongs to the model with the fingerprint "
        f"{code_span(base.fingerprint)} and to no other. Made {code_span(card.created)}."
    )


def _template(card: Card) -> dict[str, Any]:
    about = card.template
    shown: dict[str, Any] = {"front": about.front, "input": about.input, "target": about.target}
    offered = {"labels": about.labels, "choices": about.choices}
    return shown | {name: value for name, value in offered.items() if value is not None}


# Scores ------------------------------------------------------------------------------------------


def _scores(card: Card) -> str:
    if not card.scores:
        return "None were measured."
    heads = list(dict.fromkeys(name for row in card.scores.values() for name, _ in _numbers(row)))
    lines = []
    for split, row in card.scores.items():
        cells = dict(_numbers(row))
        lines.append([code_span(split), *(cells.get(head, "") for head in heads)])
    note = "In brackets: 95% intervals. Negative log-likelihood (nll) is in nats for each target token."
    if card.template.scaling is not None:
        note += (
            " Labels were chosen by scores that are scaled and shifted as `template.scaling` in "
            f"`{CARD_FILE}` says; softprompt does that, a model that only reads the prompt does not."
        )
    return table(["rows from", *map(code_span, heads)], lines) + "\n\n" + note


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each plain number of a row of scores, with its interval where it has one."""
    for name, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, _number(value) + _interval(row.get(f"{name}_interval"))


def _interval(pair: Any) -> str:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return ""
    if not all(isinstance(end, int | float) for end in pair):
        return ""
    return f" [{_number(pair[0])}, {_number(pair[1])}]"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# Code --------------------------------------------------------------------------------------------


def _softprompt_code(card: Card) -> str:
    return f"""\
import softprompt

base = softprompt.load_base({_load_arguments(card)})
prompt = softprompt.load_prompt({quoted("./" + card.name)}, base)
print(prompt.generate({_example_row(card)}))"""


def _prompt_code(card: Card) -> str:
    """The front holds what the tokenizer sets first, so the text is tokenised without it."""
    return f"""\
# PEFT up to 0.21.2 needs transformers below 5.24 here, or it reads the prompt again at every token.
from peft import PeftModel
{_base_code(card)}
model = PeftModel.from_pretrained(model, {quoted("./" + card.name)})
{_ANSWER.format(text=quoted(_example_text(card)))}"""


def _adapter_code(card: Card) -> str:
    return f"""\
from peft import PeftModel
{_base_code(card)}
model = PeftModel.from_pretrained(model, {quoted("./" + card.name)})
{_answer_behind_front(card)}"""


def _model_code(card: Card) -> str:
    here = quoted("./" + card.name)
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({here})
model = AutoModelForCausalLM.from_pretrained({here}{_dtype(card)})
{_answer_behind_front(card)}"""


def _answer_behind_front(card: Card) -> str:
    """Lines that answer a text behind the embeddings in ``front.safetensors``, if there are any."""
    plain, text = _ANSWER, quoted(_example_text(card))
    if not card.positions:
        return plain.format(text=text)
    return _BEHIND_FRONT.format(text=text, front=quoted(f"./{card.name}/{FRONT_FILE}"))


def _base_code(card: Card) -> str:
    """Lines that make ``model`` and ``tokenizer``: plain transformers where it knows the base's name."""
    name = card.base.name
    if name in catalog.names() or name.endswith(".gguf") or card.base.quantisation != "none":
        return f"""\
import softprompt

base = softprompt.load_base({_load_arguments(card)})
model, tokenizer = base.model, base.tokenizer"""
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({quoted(name)}{_revision(card)})
model = AutoModelForCausalLM.from_pretrained({_load_arguments(card)})"""


def _load_arguments(card: Card) -> str:
    stored = card.base.quantisation
    quantisation = "" if stored == "none" else f", quantisation={quoted(stored)}"
    return quoted(card.base.name) + _revision(card) + _dtype(card) + quantisation


def _dtype(card: Card) -> str:
    dtype = card.base.dtype.removeprefix("torch.")
    return f', dtype="{dtype}"' if dtype in _DTYPES else ""


def _revision(card: Card) -> str:
    return f", revision={quoted(card.base.revision)}" if card.base.revision else ""


def _example_row(card: Card) -> str:
    fields = card.template.template.input_fields
    return "{" + ", ".join(f'{quoted(field)}: "..."' for field in fields) + "}"


def _example_text(card: Card) -> str:
    template = card.template.template
    return template.render_input(dict.fromkeys(template.input_fields, "..."))


_ANSWER = """\
text = {text}
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
answer = model.generate(**ids, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""

_BEHIND_FRONT = """\
import torch
from safetensors.torch import load_file

text = {text}
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
front = load_file({front})["front"].to(model.device, model.dtype)
read = torch.cat([front[None], model.get_input_embeddings()(ids)], 1)
answer = model.generate(inputs_embeds=read, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""

_ALONE = "PEFT has no format for a prefix of layers that differ, so softprompt alone reads it."
_BEHIND = ", behind {positions} positions of text"
_PROMPT = _KindText("{noun} of {positions} positions in front of the frozen", "", "peft", _prompt_code)
_LOOKS = {
    "lora": _KindText("{noun} for the frozen", _BEHIND, "peft", _adapter_code),
    "ia3": _KindText("{noun} for the frozen", _BEHIND, "peft", _adapter_code),
    "full": _KindText("{noun} of the", _BEHIND, "transformers", _model_code),
}
_TITLES = {"peft": "PEFT", "transformers": "transformers"}


def _look(card: Card) -> _KindText:
    return _LOOKS.get(card.kind, _PROMPT)


# Training and data -------------------------------------------------------------------------------


def _training(card: Card) -> str:
    about = card.training
    if about is None:
        return "Nothing was trained."
    rows = [
        ["steps", f"{about.steps:,}"],
        ["step kept", f"{about.best_step:,}"],
        ["ended", code_span(about.ended)],
        ["seconds", f"{about.seconds:,.1f}"],
    ]
    if about.peak_memory_bytes is not None:
        rows.append(["peak memory", f"{about.peak_memory_bytes / 2**20:,.0f} MiB"])
    return table(["what", "value"], rows)


def _data(card: Card) -> str:
    if not card.data:
        return "None was used."
    rows = [
        [code_span(split), code_span(about.origin), f"{about.rows:,}", code_span(about.digest)]
        for split, about in card.data.items()
    ]
    return table(["split", "from", "rows", "SHA-256 of the rows"], rows)
