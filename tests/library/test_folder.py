"""A library keeps artifacts whole, bound to their base, and inside its folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from library import samples
from softprompt.errors import ArtifactError, ResourceError, WrongBaseError
from softprompt.library import folder, peft_format
from softprompt.library.card import CARD_FILE, read_card
from softprompt.library.folder import Artifact, Library, check_base
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE, from_front

FILES = {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, "README.md"}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """A library with one artifact, ``topics``."""
    made = Library(tmp_path / "prompts")
    made.save("topics", samples.learnt(), samples.card())
    return made


def names(library: Library) -> list[str]:
    return [entry.name for entry in library.list()]


# Saving ------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(library: Library) -> None:
    artifact = library.load("topics")
    assert {file.name for file in artifact.path.iterdir()} == FILES
    assert torch.equal(artifact.learnt.tensor, samples.learnt().tensor)
    assert artifact.card is not None
    assert len(artifact.card.weights_sha256) == 64
    assert artifact.card.model_copy(update={"weights_sha256": ""}) == samples.card()
    assert artifact.base_name == tiny.base().name


def test_an_artifact_may_be_moved_and_loaded_by_its_path(library: Library, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "it"
    shutil.copytree(library.path / "topics", moved)
    for path in (moved, str(moved)):
        assert library.load(path).card == library.load("topics").card


def test_the_card_gets_the_name_it_is_saved_under(library: Library) -> None:
    library.save("other", samples.learnt(), samples.card())
    card = library.load("other").card
    assert card is not None
    assert card.name == "other"


def test_a_name_is_taken_until_overwriting_is_allowed(library: Library) -> None:
    base = tiny.base()
    other = from_front(samples.soft(base, seed=9), base)
    with pytest.raises(ResourceError, match="exists already; choose another name or allow overwriting"):
        library.save("topics", other, samples.card())
    assert torch.equal(library.load("topics").learnt.tensor, samples.learnt().tensor)
    library.save("topics", other, samples.card(), overwrite=True)
    assert torch.equal(library.load("topics").learnt.tensor, other.tensor)
    assert sorted(os.listdir(library.path)) == ["topics"]


def test_a_folder_that_is_no_artifact_is_never_replaced_or_removed(library: Library) -> None:
    (library.path / "src").mkdir()
    (library.path / "src" / "mine.py").write_text("")
    with pytest.raises(ArtifactError, match="is no saved prompt, so it is not replaced"):
        library.save("src", samples.learnt(), samples.card(), overwrite=True)
    with pytest.raises(ArtifactError, match="There is no prompt called src"):
        library.remove("src")
    assert (library.path / "src" / "mine.py").exists()
    assert names(library) == ["topics"]


def test_a_card_must_fit_its_tensor(library: Library) -> None:
    with pytest.raises(ArtifactError, match="card speaks of 9 positions, but there are 4"):
        library.save("new", samples.learnt(), samples.card(positions=9))
    with pytest.raises(
        ArtifactError, match="card speaks of 'prefix-tuning', but what was learnt is of the kind prompt"
    ):
        library.save("new", samples.learnt(), samples.card(kind="prefix-tuning"))
    assert os.listdir(library.path) == ["topics"]


def test_a_kv_prefix_is_saved_too(library: Library) -> None:
    base = tiny.base()
    prefix = samples.prefix(base)
    library.save("kv", from_front(prefix, base), samples.card(kind="prefix-tuning"))
    front = peft_format.to_front(library.load("kv").learnt, base)
    assert not isinstance(front, torch.Tensor)
    assert front.digest == prefix.digest


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../topics", "a/b", "a\\b", "/etc", ".hidden", "a b", "a\n", "ä", "x" * 101, "a\0b"],
)
def test_a_name_cannot_leave_the_library(name: str, library: Library) -> None:
    for act in (library.find, library.load_named, library.remove):
        with pytest.raises(ArtifactError, match="is no name for a prompt"):
            act(name)
    with pytest.raises(ArtifactError, match="is no name for a prompt"):
        library.save(name, samples.learnt(), samples.card(), overwrite=True)
    assert names(library) == ["topics"]


# Writes that do not end --------------------------------------------------------------------------


def fail_at_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def fail_at_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "model_card", interrupted)


@pytest.mark.parametrize(
    ("fail", "error"), [(fail_at_fsync, ResourceError), (fail_at_readme, KeyboardInterrupt)]
)
def test_a_failed_write_leaves_what_was_there(
    fail: Callable[[pytest.MonkeyPatch], None],
    error: type[BaseException],
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = library.load("topics")
    with monkeypatch.context() as patch:
        fail(patch)
        for name in ("topics", "new"):
            with pytest.raises(error):
                library.save(name, samples.learnt(), samples.card(positions=4), overwrite=True)
    assert os.listdir(library.path) == ["topics"]
    assert library.load("topics").card == before.card


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from library import samples
from softprompt.library import folder
folder.model_card = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder.Library({path!r}).save("new", samples.learnt(), samples.card())
"""


def test_a_killed_write_leaves_nothing_visible(library: Library) -> None:
    code = KILLED.format(tests=str(Path(tiny.__file__).parent), path=str(library.path))
    died = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(os.listdir(library.path)) == 2  # the staging folder lies there, hidden
    assert names(library) == ["topics"]
    with pytest.raises(ArtifactError):
        library.load("new")
    library.save("new", samples.learnt(), samples.card())
    assert names(library) == ["new", "topics"]


# Loading -----------------------------------------------------------------------------------------


def test_a_missing_name_lists_what_is_there(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        library.load("topic")
    said = f"There is no prompt called topic in {library.path}, which holds topics; did you mean topics?"
    assert str(caught.value) == said
    with pytest.raises(ArtifactError, match=r"the library .*nothing is not there"):
        Library(tmp_path / "nothing").load("topics")


def test_changed_weights_are_refused(library: Library) -> None:
    path = library.path / "topics" / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        library.load("topics")
    content[-1] ^= 1
    path.write_bytes(content)
    library.load("topics")


def test_weights_swapped_for_others_are_refused(library: Library) -> None:
    base = tiny.base()
    peft_format.write(library.path / "topics", from_front(samples.soft(base, seed=5), base), base.name)
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        library.load("topics")


def test_a_card_whose_hash_was_taken_out_binds_nothing_and_is_refused(library: Library) -> None:
    path = library.path / "topics" / CARD_FILE
    path.write_text(path.read_text().replace(read_card(path.parent).weights_sha256, ""))
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        library.load("topics")


def test_a_card_with_other_positions_is_refused(library: Library) -> None:
    path = library.path / "topics" / CARD_FILE
    path.write_text(path.read_text().replace('"positions": 4', '"positions": 5'))
    with pytest.raises(ArtifactError, match="card speaks of 5 positions, but there are 4"):
        library.load("topics")


def test_a_folder_of_peft_has_no_card_and_is_loaded_by_path_only(library: Library) -> None:
    path = samples.peft_folder(library.path / "bare")
    artifact = library.load(path)
    assert artifact.card is None
    assert artifact.learnt.positions == samples.P
    check_base(artifact, tiny.base())
    with pytest.raises(ArtifactError, match=r"bare has no softprompt\.json"):
        library.load("bare")


@pytest.mark.parametrize("part", ["", *sorted(FILES - {"README.md"})])
def test_links_out_of_the_library_are_refused(part: str, library: Library, tmp_path: Path) -> None:
    inside, outside = library.path / "topics" / part, tmp_path / "outside"
    os.rename(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(ArtifactError, match="is a link that leads out of the library"):
        library.load("topics")
    with pytest.raises(ArtifactError, match="is a link that leads out of the library"):
        library.remove("topics")
    assert outside.exists()
    assert [entry.card for entry in library.list()] == [None]
    library.load(library.path / "topics")  # by its path, it is the user's word


# Listing and removing ----------------------------------------------------------------------------


def test_the_list_is_sorted_and_names_what_is_broken(library: Library) -> None:
    for name in ("zebra", "alpha", "broken", "cut", "shape"):
        library.save(name, samples.learnt(), samples.card())
    (library.path / "broken" / CARD_FILE).write_text("{")
    cut = library.path / "cut" / WEIGHTS_FILE
    cut.write_bytes(cut.read_bytes()[:-1])
    card = library.path / "shape" / CARD_FILE
    card.write_text(card.read_text().replace('"positions": 4', '"positions": 5'))
    (library.path / "not a name").mkdir()
    shutil.copy(card, library.path / "not a name")
    (library.path / ".staging").mkdir()
    shutil.copy(card, library.path / ".staging")
    (library.path / "empty").mkdir()
    (library.path / "notes.txt").write_text("")
    entries = {entry.name: entry for entry in library.list()}
    assert list(entries) == ["alpha", "broken", "cut", "not a name", "shape", "topics", "zebra"]
    sound = {name for name, entry in entries.items() if entry.card}
    assert sound == {"alpha", "topics", "zebra"}
    assert all((entry.card is None) != (entry.fault is None) for entry in entries.values())
    assert "is not valid JSON" in str(entries["broken"].fault)
    assert "is damaged" in str(entries["cut"].fault)
    assert "5 positions" in str(entries["shape"].fault)
    assert "is no name" in str(entries["not a name"].fault)


def test_a_library_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Library(tmp_path / "nothing").list() == []


def test_a_library_that_is_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Cannot read the library"):
        Library(tmp_path / "file").list()
    with pytest.raises(ResourceError, match="Cannot write"):
        Library(tmp_path / "file").save("new", samples.learnt(), samples.card())


def test_remove_deletes_one_artifact_even_if_broken(library: Library) -> None:
    library.save("other", samples.learnt(), samples.card())
    (library.path / "topics" / CARD_FILE).write_text("{")
    library.remove("topics")
    assert os.listdir(library.path) == ["other"]
    with pytest.raises(ArtifactError, match="There is no prompt called topics"):
        library.remove("topics")


def test_removing_a_link_keeps_its_target(library: Library) -> None:
    (library.path / "alias").symlink_to(library.path / "topics")
    assert library.load("alias").card == library.load("topics").card
    library.remove("alias")
    assert names(library) == ["topics"]


# The base ----------------------------------------------------------------------------------------


def test_the_right_base_is_accepted_and_another_refused_by_name(library: Library) -> None:
    artifact, base, other = library.load("topics"), tiny.base(), tiny.base("llama", seed=1)
    check_base(artifact, base)
    with pytest.raises(WrongBaseError) as caught:
        check_base(artifact, other)
    for part in (base.name, other.name, base.fingerprint[7:19], other.fingerprint[7:19], "load the base"):
        assert part in str(caught.value)


def test_a_base_of_the_same_name_but_other_weights_is_said_to_be_so(library: Library) -> None:
    artifact = library.load("topics")
    assert artifact.card is not None
    about = artifact.card.base.model_copy(update={"name": "tiny-llama-1"})
    renamed = artifact.card.model_copy(update={"base": about})
    with pytest.raises(WrongBaseError, match="another revision or quantisation of tiny-llama-1"):
        check_base(Artifact(artifact.path, renamed, artifact.payload), tiny.base("llama", seed=1))
