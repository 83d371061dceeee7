"""Prompts that change the model: one frozen base serves them all, together and alone, and stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from library import samples
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.errors import ArtifactError, WrongBaseError
from softprompt.library.changed import FRONT_FILE, MODEL_FILE, artifact_bytes
from softprompt.library.folder import Library, check_base
from softprompt.library.formats import payload
from softprompt.library.peft_format import WEIGHTS_FILE
from softprompt.library.prompt import Prompt, answer_together, load_prompt

MAKERS: dict[str, Callable[..., Prompt]] = {"lora": samples.lora, "full": samples.full}
NOTICED = r"card speaks of \d positions, but there are \d|was changed or damaged"
TEXTS = ("a", "some more text", "zz")
each_kind = pytest.mark.parametrize("kind", MAKERS)


def made(kind: str, base: Base, **options: Any) -> Prompt:
    return MAKERS[kind](base, **options)


def soft(base: Base) -> Prompt:
    return Prompt(base, samples.soft(base), samples.bound(base, "prompt-tuning", samples.P, name="soft"))


@each_kind
@pytest.mark.parametrize("positions", [0, 3])
def test_what_was_saved_answers_the_same(kind: str, positions: int, tmp_path: Path) -> None:
    base = tiny.base()
    prompt = made(kind, base, positions=positions)
    folder = prompt.save(tmp_path)
    again = load_prompt(prompt.name, base, tmp_path)
    assert torch.equal(samples.logits(again), samples.logits(prompt))
    assert again.generate(TEXTS, max_new_tokens=6) == prompt.generate(TEXTS, max_new_tokens=6)
    assert again.classify("a text") == prompt.classify("a text")
    assert again.card.model_copy(update={"weights_sha256": ""}) == prompt.card
    assert again.card.base.fingerprint == base.fingerprint
    assert (folder / FRONT_FILE).exists() == bool(positions)


@each_kind
def test_what_was_loaded_can_be_saved_again(kind: str, tmp_path: Path) -> None:
    base = tiny.base()
    first = made(kind, base, positions=2).save(tmp_path / "one")
    second = load_prompt(first, base).save(tmp_path / "two")
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@each_kind
def test_the_base_keeps_every_byte_also_while_a_changed_copy_answers(kind: str, tmp_path: Path) -> None:
    base = tiny.base()
    nothing = torch.empty(0, base.width)
    before, outputs = samples.bytes_of(base), base.next_logits(samples.ROWS, nothing)
    made(kind, base).save(tmp_path)
    prompt = load_prompt(made(kind, base).name, base, tmp_path)
    assert not torch.allclose(samples.logits(prompt), outputs)
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(prompt.generate, TEXTS, max_new_tokens=30)
        while not answers.done():
            assert torch.equal(base.next_logits(samples.ROWS, nothing), outputs)
        assert answers.result() == prompt.generate(TEXTS, max_new_tokens=30)
    assert samples.bytes_of(base) == before
    assert torch.equal(base.next_logits(samples.ROWS, nothing), outputs)


def test_prompts_of_different_models_are_answered_together_in_order(tmp_path: Path) -> None:
    base = tiny.base()
    lora, other, whole = samples.lora(base), samples.lora(base, seed=9), samples.full(base, positions=2)
    askers = [lora, None, soft(base), whole, other, lora, None, whole, soft(base), lora]
    wanted = [(asker, f"text {i * i}") for i, asker in enumerate(askers)]
    together = answer_together(wanted, base, max_new_tokens=6)
    alone = [answer_together([pair], base, max_new_tokens=6)[0] for pair in wanted]
    assert together == alone
    assert len(set(together)) > 5
    assert answer_together([], base) == []


def test_a_prompt_of_another_base_is_refused_among_others() -> None:
    base, other = tiny.base(), tiny.base("llama", seed=1)
    for stranger in (soft(other), samples.lora(other)):
        with pytest.raises(WrongBaseError):
            answer_together([(soft(base), "a"), (stranger, "b")], base)


@each_kind
def test_another_base_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    made(kind, tiny.base()).save(tmp_path)
    with pytest.raises(WrongBaseError, match=r"was learnt on tiny-llama-0 .* this base is tiny-llama-1"):
        load_prompt(made(kind, tiny.base()).name, tiny.base("llama", seed=1), tmp_path)


def test_a_wrong_base_message_says_how_the_right_one_was_stored(tmp_path: Path) -> None:
    prompt = samples.lora(tiny.base())
    about = prompt.card.base.model_copy(update={"quantisation": "nf4"})
    Prompt(prompt.base, prompt.front, prompt.card.model_copy(update={"base": about}), prompt.change).save(
        tmp_path
    )
    with pytest.raises(WrongBaseError, match=r"tiny-llama-0 in its nf4 form .* in its nf4 form, or"):
        check_base(Library(tmp_path).load("tuned"), tiny.base("llama", seed=1))


# The folder --------------------------------------------------------------------------------------


@each_kind
def test_changed_weights_are_refused(kind: str, tmp_path: Path) -> None:
    base = tiny.base()
    folder = made(kind, base, positions=2).save(tmp_path)
    for name in ({"lora": WEIGHTS_FILE, "full": MODEL_FILE}[kind], FRONT_FILE):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="was changed or damaged"):
            load_prompt(folder, base)
        (folder / name).write_bytes(content)
    load_prompt(folder, base)


@each_kind
def test_a_front_taken_out_or_put_in_is_noticed(kind: str, tmp_path: Path) -> None:
    base = tiny.base()
    folder = made(kind, base, positions=2).save(tmp_path)
    (folder / FRONT_FILE).rename(tmp_path / "kept")
    with pytest.raises(ArtifactError, match=NOTICED):
        load_prompt(folder, base)
    bare = made(kind, base, name="bare").save(tmp_path)
    (tmp_path / "kept").rename(bare / FRONT_FILE)
    with pytest.raises(ArtifactError, match=NOTICED):
        load_prompt(bare, base)


@pytest.mark.parametrize(("kind", "claimed"), [("lora", "prompt-tuning"), ("full", "lora"), ("lora", "full")])
def test_a_card_of_another_kind_is_refused(kind: str, claimed: str, tmp_path: Path) -> None:
    prompt = made(kind, tiny.base())
    wrong = prompt.card.model_copy(update={"kind": claimed})
    with pytest.raises(
        ArtifactError, match=f"speaks of '{claimed}', but what was learnt is of the kind {kind}"
    ):
        Prompt(prompt.base, prompt.front, wrong, prompt.change).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_library_lists_and_removes_every_kind(tmp_path: Path) -> None:
    base, library = tiny.base(), Library(tmp_path / "prompts")
    for prompt in (soft(base), samples.lora(base), samples.full(base)):
        prompt.save(library)
    assert [(entry.name, entry.fault) for entry in library.list()] == [
        ("soft", None), ("tuned", None), ("whole", None)
    ]  # fmt: skip
    broken = library.path / "whole" / MODEL_FILE
    broken.write_bytes(broken.read_bytes()[:-1])
    (library.path / "tuned" / WEIGHTS_FILE).unlink()
    faults = {entry.name: entry.fault for entry in library.list()}
    assert "is damaged" in str(faults["whole"])
    assert f"has no {WEIGHTS_FILE}" in str(faults["tuned"])
    for name in ("whole", "tuned", "soft"):
        library.remove(name)
    assert library.list() == []


def test_the_list_reads_no_weights_of_a_model(tmp_path: Path) -> None:
    """Weights that are not finite and of another hash are listed: only their header was read."""
    folder = samples.full(tiny.base()).save(tmp_path)
    with (folder / MODEL_FILE).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")
    assert Library(tmp_path).list()[0].fault is None
    with pytest.raises(ArtifactError):
        load_prompt(folder, tiny.base())


@pytest.mark.parametrize("name", [MODEL_FILE, "tokenizer.json", FRONT_FILE])
def test_links_out_of_the_library_are_refused(name: str, tmp_path: Path) -> None:
    folder = samples.full(tiny.base(), positions=1).save(tmp_path / "prompts")
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="is a link that leads out of the library"):
        Library(tmp_path / "prompts").load("whole")
    load_prompt(folder, tiny.base())  # by its path, it is the user's word


@each_kind
def test_a_write_that_fails_leaves_nothing(kind: str, tmp_path: Path) -> None:
    prompt = made(kind, tiny.base(), positions=1)
    assert isinstance(prompt.front, torch.Tensor)
    prompt.front[0, 0] = torch.nan
    with pytest.raises(ArtifactError, match="not finite"):
        prompt.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_changes_the_model_is_no_prompt_to_start_from(tmp_path: Path) -> None:
    artifact = Library(tmp_path).load(samples.lora(tiny.base()).save(tmp_path))
    with pytest.raises(ArtifactError, match=r"holds a changed model \(lora\), not a prompt"):
        _ = artifact.learnt


# Its size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "files"),
    [
        (soft, [WEIGHTS_FILE]),
        (lambda base: samples.lora(base), [WEIGHTS_FILE]),
        (lambda base: samples.lora(base, positions=2), [WEIGHTS_FILE, FRONT_FILE]),
        (lambda base: samples.full(base, positions=2), [MODEL_FILE, FRONT_FILE]),
    ],
    ids=["soft", "lora", "lora behind words", "full behind words"],
)
def test_the_size_is_that_of_the_weights_and_the_hash_is_over_them(
    make: Any, files: list[str], tmp_path: Path
) -> None:
    folder = make(tiny.base()).save(tmp_path)
    content = b"".join((folder / name).read_bytes() for name in files)
    assert artifact_bytes(folder) == len(content)
    card = Library(tmp_path).load(folder).card
    assert card is not None
    assert card.weights_sha256 == hashlib.sha256(content).hexdigest()


def test_a_folder_without_weights_has_no_size(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no learnt weights"):
        artifact_bytes(tmp_path)


def test_a_change_is_kept_in_its_own_format() -> None:
    base = tiny.base()
    kinds = [
        payload(p.base, p.front, p.change).kind for p in (soft(base), samples.lora(base), samples.full(base))
    ]
    assert kinds == ["prompt-tuning", "lora", "full"]


# A quantised base --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # bitsandbytes and what it looks for
def test_adapters_of_a_quantised_base_belong_to_it_alone(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra quantised")
    pytest.importorskip("accelerate", reason="needs the extra quantised")
    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"), dtype="float32", quantisation="nf4", device="cpu")
    before = samples.bytes_of(base)
    prompt = samples.lora(base)
    folder = prompt.save(tmp_path / "prompts")
    again = load_prompt(folder, base)
    assert torch.equal(samples.logits(again), samples.logits(prompt))
    assert samples.bytes_of(base) == before
    plain = load_base(str(tmp_path / "base"), dtype="float32", device="cpu")
    with pytest.raises(WrongBaseError):
        load_prompt(folder, plain)


@each_kind
def test_the_bare_job_is_the_base_as_it_was(kind: str, tmp_path: Path) -> None:
    base = tiny.base()
    made(kind, base, positions=2).save(tmp_path)
    prompt = load_prompt(made(kind, base).name, base, tmp_path)
    bare = prompt.bare()
    nothing = base.embed(base.start_ids)
    assert bare.base is base
    assert torch.equal(base.next_logits(samples.ROWS, bare.prefix), base.next_logits(samples.ROWS, nothing))
    assert not torch.allclose(samples.logits(bare), samples.logits(prompt))
