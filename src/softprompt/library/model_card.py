"""The README of an artifact, in the model hub's convention: knows a card and how to show it safely.

Every value of the card is quoted, so that text from a stranger cannot pose as YAML, Markdown or code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from softprompt.base import catalog
from softprompt.data.template import Template
from softprompt.library.card import Card
from softprompt.library.markup import code_span, json_block, quoted, table

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_DTYPES = ("float32", "bfloat16", "float16")
_KINDS = {
    "prompt-tuning": "A soft prompt",
    "prefix-tuning": "A prefix of keys and values",
    "text": "A text, kept as embeddings,",
}


def model_card(card: Card) -> str:
    """The content of ``README.md``: front matter, what the prompt does, its scores, and how to use it."""
    sections = (
        _front_matter(card),
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
        f"With PEFT:\n\n```python\n{_peft_code(card)}\n```",
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


def _front_matter(card: Card) -> str:
    lines = ["---"]
    if _from_hub(card.base.name):  # the hub refuses any other value
        lines.append(f"base_model: {quoted(card.base.name)}")
    tags = ["softprompt", card.kind, card.base.model_type]
    lines += ["library_name: peft", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {quoted(tag)}" for tag in dict.fromkeys(tags) if tag]
    return "\n".join([*lines, "---"])


def _from_hub(name: str) -> bool:
    """Whether a base may be a hub id, going by its looks."""
    return bool(_HUB_ID.fullmatch(name)) and name not in catalog.names() and not name.endswith(".gguf")


def _summary(card: Card) -> str:
    base = card.base
    return (
        f"{_KINDS.get(card.kind, 'A prompt')} of {card.positions:,} positions in front of the frozen "
        f"language model {code_span(base.name)} ({code_span(base.model_type)}, {code_span(base.dtype)}); "
        f"{card.trained_parameters:,} numbers were learnt. It belongs to the model with the fingerprint "
        f"{code_span(base.fingerprint)} and to no other. Made {code_span(card.created)}."
    )


def _template(card: Card) -> dict[str, Any]:
    about = card.template
    shown: dict[str, Any] = {"front": about.front, "input": about.input, "target": about.target}
    return shown if about.labels is None else shown | {"labels": about.labels}


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


def _peft_code(card: Card) -> str:
    """The front holds what the tokenizer sets first, so the text is tokenised without it."""
    return f"""\
from peft import PeftModel
{_base_code(card)}
model = PeftModel.from_pretrained(model, {quoted("./" + card.name)})
text = {quoted(_example_text(card))}
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
answer = model.generate(**ids, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""


def _base_code(card: Card) -> str:
    """Lines that make ``model`` and ``tokenizer``: plain transformers where it knows the base's name."""
    name = card.base.name
    if name in catalog.names() or name.endswith(".gguf"):
        return f"""\
import softprompt

base = softprompt.load_base({_load_arguments(card)})
model, tokenizer = base.model, base.tokenizer"""
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({quoted(name)}{_revision(card)})
model = AutoModelForCausalLM.from_pretrained({_load_arguments(card)})"""


def _load_arguments(card: Card) -> str:
    dtype = card.base.dtype.removeprefix("torch.")
    numbers = f', dtype="{dtype}"' if dtype in _DTYPES else ""
    return quoted(card.base.name) + _revision(card) + numbers


def _revision(card: Card) -> str:
    return f", revision={quoted(card.base.revision)}" if card.base.revision else ""


def _example_row(card: Card) -> str:
    fields = _as_template(card).input_fields
    return "{" + ", ".join(f'{quoted(field)}: "..."' for field in fields) + "}"


def _example_text(card: Card) -> str:
    template = _as_template(card)
    return template.render_input(dict.fromkeys(template.input_fields, "..."))


def _as_template(card: Card) -> Template:
    about = card.template
    return Template(about.input, about.target, about.labels, about.label_column)


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
