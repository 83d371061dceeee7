"""The README is true to the card, its code runs, and no text from a stranger can break out of it."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
import yaml
from packaging.version import Version

import tiny
from library import samples
from library.samples import NASTY
from softprompt.checkpoints.freeze import freeze
from softprompt.cli.show import _facts
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.card import Card
from softprompt.library.folder import Library
from softprompt.library.model_card import model_card
from softprompt.library.peft_format import from_front
from softprompt.library.prompt import Prompt


def front_matter(text: str) -> Any:
    """What the hub reads: the YAML between the first two lines of dashes."""
    lines = text.split("\n")
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)


def with_base(**changes: Any) -> Card:
    base = samples.card_values()["base"] | changes
    return samples.card(base=base)


# What it says ------------------------------------------------------------------------------------


def test_the_front_matter_follows_the_hubs_convention() -> None:
    assert front_matter(model_card(with_base(name="org/model"))) == {
        "base_model": "org/model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["softprompt", "prompt-tuning", "llama"],
    }


def test_scores_that_need_the_labels_scaled_say_so() -> None:
    """A PEFT folder has the README, and cannot scale."""
    values = samples.card_values()
    labels = {"labels": {"a": "a", "b": "b"}, "label_column": "k", "target": "{k}"}
    scores = {"scores": {"validation": {"nll": 1.5}}}
    plain = samples.card(template=values["template"] | labels, **scores)
    scaling = {"scale": [1.0, 2.0], "shift": [0.0, 0.5]}
    scaled = samples.card(template=values["template"] | labels | {"scaling": scaling}, **scores)
    for said in (model_card(plain), str(_facts(plain, "x"))):
        assert "scaled and shifted" not in said
    for said in (model_card(scaled), str(_facts(scaled, "x"))):
        assert "scaled and shifted" in said


@pytest.mark.parametrize("name", ["smollm2-135m", "/models/x", "../x", "models/y.gguf", "a b", "a/b/c"])
def test_only_what_may_be_a_hub_id_is_named_to_the_hub(name: str) -> None:
    assert "base_model" not in front_matter(model_card(with_base(name=name)))


def test_scores_stand_in_a_table_with_their_intervals() -> None:
    text = model_card(samples.card())
    assert "| rows from | `rows` | `nll` | `accuracy` |" in text
    assert "| `validation` | 100 | 0.5 [0.4, 0.6] | 0.823 |" in text
    assert "| `test` | 400 | 0.52 | 0.8 [0.758, 0.836] |" in text


def test_the_rest_of_the_card_is_there() -> None:
    text = model_card(samples.card())
    for part in (
        "`bundled:bbc/train`",
        "ab" * 32,
        '"learning_rate": 0.01',
        '"sport": "sport"',
        "| steps | 96 |",
    ):
        assert part in text
    assert tiny.base().fingerprint in text


def test_an_artifact_without_training_scores_or_data_says_so() -> None:
    text = model_card(samples.card(training=None, scores={}, data={}, kind="text"))
    for part in ("Nothing was trained.", "None were measured.", "None was used."):
        assert part in text


@pytest.mark.parametrize(
    "scores",
    [
        {"test": {"a": True, "b": None, "c": "x", "d": [1], "e": {"f": 1}}},
        {"test": {"nll": 1, "nll_interval": ["a", "b"]}, "other": {"acc": 10**18}},
        {"test": {"nll": 1.5, "nll_interval": [1, 2, 3]}, "empty": {}},
    ],
)
def test_odd_scores_do_no_harm(scores: Any) -> None:
    assert "| `test` |" in model_card(samples.card(scores=scores))


# Its code ----------------------------------------------------------------------------------------


PEFT_WARNS = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: an artifact on a base that lies in a folder too."""
    base = tiny.base()
    folder = str(tmp_path / "base folder")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    card = with_base(name=folder)
    monkeypatch.chdir(tmp_path)
    return Library(tmp_path).save("topics", samples.learnt(), card)


def run(code: str) -> str:
    """What a code block prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


@PEFT_WARNS
@pytest.mark.xfail(
    Version(peft.__version__) <= Version("0.21.2") and Version(transformers.__version__) >= Version("5.24"),
    reason="PEFT sets the prompt anew at every token, as the card says",
    strict=True,
)
def test_the_peft_code_answers_as_softprompt_does(saved: Path) -> None:
    code = code_blocks((saved / "README.md").read_text(), "python")[1]
    base = tiny.base()
    ids = base.encode("Headline: ...\nTopic:")
    prefix, twenty = base.prefill(samples.soft(base)), Sampling(max_new_tokens=20)
    expected = generate([GenerateRequest(model=base, prefix=prefix, ids=tuple(ids), sampling=twenty)])[0]
    assert run(code).endswith(expected + "\n")


@PEFT_WARNS
def test_the_peft_code_for_a_base_only_softprompt_knows(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = code_blocks((saved / "README.md").read_text(), "python")[1]
    card = with_base(name="smollm2-135m")
    other = code_blocks(model_card(card), "python")[1]
    base = freeze(tiny.model("llama"), tiny.tokenizer(), "tiny")
    monkeypatch.setattr("softprompt.checkpoints.freeze.load_base", lambda *_, **__: base)
    assert "base.model, base.tokenizer" in other
    assert run(other) == run(code)


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("make", [samples.lora, samples.full])
def test_the_code_for_a_changed_model_answers_as_softprompt_does(
    make: Any, positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    prompt = make(base, positions=positions)
    about = prompt.card.base.model_copy(update={"name": "./base"})
    card = prompt.card.model_copy(update={"base": about})
    folder = Prompt(prompt.base, prompt.front, card, prompt.change).save(tmp_path)
    code = code_blocks((folder / "README.md").read_text(), "python")
    request = prompt.request("...", Sampling(max_new_tokens=20))
    request = replace(request, room=None)  # its answer not cut to the longest label
    expected = generate([request])[0]
    assert run(code[1]).endswith(expected + "\n")
    assert run(code[0]).strip() == prompt.generate("...")


@pytest.mark.parametrize(("kind", "library"), [("lora", "peft"), ("full", "transformers")])
def test_a_changed_model_is_called_what_it_is(kind: str, library: str) -> None:
    text = model_card(samples.bound(tiny.base(), kind, 5, trained_parameters=1234))
    assert front_matter(text)["library_name"] == library
    assert {"lora": "A LoRA adapter for the frozen", "full": "A fine-tuned copy of the"}[kind] in text
    assert ", behind 5 positions of text; 1,234 numbers were learnt" in text
    assert "behind" not in model_card(samples.bound(tiny.base(), kind, 0)).split("##")[0]


def test_the_code_loads_a_quantised_base_as_it_was() -> None:
    card = with_base(name="org/model", quantisation="nf4")
    text = model_card(card.model_copy(update={"kind": "lora"}))
    assert "`float32`, `nf4`)" in text
    for code in code_blocks(text, "python"):
        assert 'softprompt.load_base("org/model", dtype="float32", quantisation="nf4")' in code


def test_the_softprompt_code_answers(saved: Path) -> None:
    code = code_blocks((saved / "README.md").read_text(), "python")[0]
    assert 'softprompt.load_prompt("./topics", base)' in code
    assert run(code).strip()


def test_the_revision_is_asked_for() -> None:
    for code in code_blocks(model_card(with_base(name="org/model", revision="abc")), "python"):
        assert '"org/model", revision="abc"' in code


# Text from strangers -----------------------------------------------------------------------------


def nasty_card(text: str) -> Card:
    values = samples.card_values()
    values |= {"name": text, "kind": text, "versions": {text: text}, "settings": {text: [text]}}
    values["base"] |= {"name": text, "model_type": text, "dtype": text, "revision": text}
    values["base"] |= {"quantisation": text}
    values["template"] |= {"front": text, "labels": {text: text, "b": "c"}}
    values["template"] |= {"input": text.replace("{", "{{").replace("}", "}}") + "{te`xt'}"}
    values["data"] = {text: {"origin": text, "rows": 1, "digest": text}}
    values["scores"] = {text: {text: 1.0, f"{text}_interval": [text, text]}}
    values["training"] |= {"ended": text}
    return Card.model_validate(values)


@pytest.mark.parametrize("text", [NASTY, "\n---\n", "```\n# x\n```", "a|b", "`", "\r\n\r\n<b>", "~~~\n"])
def test_nothing_breaks_out_of_the_readme(text: str) -> None:
    plain, nasty = model_card(samples.card()), model_card(nasty_card(text))
    about = front_matter(nasty)
    assert set(about) == {"library_name", "pipeline_tag", "tags"}
    assert text in about["tags"]
    for count in (lambda s: s.count("\n---\n"), headings, fences):
        assert count(nasty) == count(plain)
    assert all(c == "\n" or c.isprintable() for c in nasty)
    for line in outside_code(nasty):
        assert "<" not in line
        assert "](" not in line


def headings(text: str) -> int:
    return sum(line.startswith("#") for line in text.split("\n"))


def fences(text: str) -> int:
    return sum(line.lstrip().startswith(("```", "~~~")) for line in text.split("\n"))


def outside_code(text: str) -> list[str]:
    """Lines outside of fences, their code spans taken out."""
    without = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    body = without.split("\n---\n", 1)[1]
    return [re.sub(r"`[^`]*`", "", line) for line in body.split("\n")]


@pytest.mark.parametrize("kind", [NASTY, "lora", "full"])
def test_code_blocks_with_nasty_text_still_are_python(kind: str) -> None:
    card = nasty_card(NASTY).model_copy(update={"kind": kind})
    codes = code_blocks(model_card(card), "python")
    assert len(codes) == 2
    for code in codes:
        compile(code, "README.md", "exec")


def test_a_prefix_has_a_readme_too() -> None:
    base = tiny.base()
    learnt = from_front(samples.prefix(base), base)
    assert learnt.positions == samples.P
    assert "A prefix of keys and values of 4 positions" in model_card(samples.card(kind="prefix-tuning"))
