"""A library on an object store is one: whole prompts or none, brought once, and safe from a lost connection.

Every promise is held against fsspec's store in memory and against a real S3 server process.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import tiny
from library import samples, stores
from softprompt.checkpoints.freeze import load_base
from softprompt.cli.main import run
from softprompt.comparison.settings import load_comparison
from softprompt.config import parse
from softprompt.errors import ArtifactError, ConfigError, ResourceError
from softprompt.library.bucket import ObjectStore
from softprompt.library.folder import Library, check_base
from softprompt.library.peft_format import WEIGHTS_FILE, from_front
from softprompt.library.place import Folder, place_at
from softprompt.library.prompt import load_prompt
from softprompt.serving.engine import Engine


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with stores.s3() as url:
        stores.forget_clients()
        yield url
    stores.forget_clients()


@pytest.fixture(params=["memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A library's address on a store, which is empty; copies are kept in this test's folder."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/prompts"
    return f"s3://{stores.bucket(request.getfixturevalue('server'))}/some/prompts"


def another(seed: int) -> Any:
    base = tiny.base()
    return from_front(samples.soft(base, seed), base)


def elsewhere(address: str, tmp_path: Path) -> Library:
    """The same library as another machine sees it."""
    library = Library(address)
    library._place = ObjectStore(address, tmp_path / uuid.uuid4().hex, fresh=0.0)
    return library


# What a folder does --------------------------------------------------------------------------------


def test_what_was_saved_is_listed_and_loaded_by_another_machine(address: str, tmp_path: Path) -> None:
    Library(address).save("topics", samples.learnt(), samples.card())
    library = elsewhere(address, tmp_path)
    assert list(library.names()) == ["topics"]
    (listed,) = library.list()
    assert listed.fault is None
    assert listed.card == library.card("topics")
    assert listed.nbytes == sum(file.stat().st_size for file in library.find("topics").iterdir())
    artifact = library.load("topics")
    assert torch.equal(artifact.learnt.tensor, samples.learnt().tensor)
    check_base(artifact, tiny.base())
    assert artifact.card == Library(f"{address}/").load(f"{address}/topics").card


def test_listing_brings_no_weights(address: str, tmp_path: Path) -> None:
    Library(address).save("topics", samples.learnt(), samples.card())
    library = elsewhere(address, tmp_path)
    assert [entry.name for entry in library.list()] == ["topics"]
    assert not library.path.exists()


def test_a_library_that_is_empty_and_one_that_is_missing_are_told_apart(address: str) -> None:
    library = Library(address)
    assert list(library.names()) == []
    assert library.list() == []
    with pytest.raises(
        ArtifactError, match=r"no prompt called topics .*[(/]prompts, which holds none|is not there"
    ):
        library.load("topics")
    library.save("topics", samples.learnt(), samples.card())
    with pytest.raises(ArtifactError, match=r"no prompt called topic .*did you mean topics\?"):
        library.load("topic")
    assert library.exists()


def test_a_taken_name_is_refused_and_replaced_when_allowed(address: str, tmp_path: Path) -> None:
    library = Library(address)
    library.save("topics", samples.learnt(), samples.card())
    with pytest.raises(ResourceError, match="exists already"):
        library.save("topics", another(9), samples.card())
    reader = elsewhere(address, tmp_path)
    before = reader.stamp("topics")
    library.save("topics", another(9), samples.card(), overwrite=True)
    assert torch.equal(reader.load("topics").learnt.tensor, another(9).tensor)
    assert reader.stamp("topics") != before


def test_renamed_and_removed(address: str, tmp_path: Path) -> None:
    library = Library(address)
    library.save("topics", samples.learnt(), samples.card())
    library.rename("topics", "themes")
    reader = elsewhere(address, tmp_path)
    assert list(reader.names()) == ["themes"]
    artifact = reader.load("themes")
    assert artifact.card is not None
    assert artifact.card.name == "themes"
    library.remove("themes")
    assert list(reader.names()) == []
    assert reader.stamp("themes") is None
    with pytest.raises(ArtifactError, match="no prompt called themes"):
        library.remove("themes")
    store, root = fsspec.core.url_to_fs(address)
    assert store.find(root, refresh=True) == []  # no file of it is left


def test_an_artifact_is_brought_once(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Library(address).save("topics", samples.learnt(), samples.card())
    library = elsewhere(address, tmp_path)
    library.load("topics")
    again = Library(address)
    again._place = ObjectStore(address, library.path)

    def never(*_: Any) -> None:
        raise AssertionError("brought again")

    monkeypatch.setattr(again._place, "_bring", never)
    assert again.load("topics").card == library.card("topics")


# Whole or not at all -------------------------------------------------------------------------------


def test_a_reader_never_sees_half_of_a_prompt(address: str, tmp_path: Path) -> None:
    """A prompt is replaced all the time; every load is one of the versions, whole."""
    versions = [another(seed) for seed in range(4)]
    writer = Library(address)
    writer.save("topics", versions[0], samples.card())
    done = threading.Event()

    def write() -> None:
        for turn in range(24):
            writer.save("topics", versions[turn % 4], samples.card(), overwrite=True)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    read = 0
    while not done.is_set() or not read:
        artifact = elsewhere(address, tmp_path).load("topics")  # checks the weights against the card
        assert any(torch.equal(artifact.learnt.tensor, version.tensor) for version in versions)
        read += 1
    thread.join()


def test_a_writer_that_dies_before_the_pointer_leaves_the_old_prompt(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(address)
    library.save("topics", samples.learnt(), samples.card())

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(library._place._fs, "pipe_file", dies)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            library.save("topics", another(9), samples.card(), overwrite=True)
    artifact = elsewhere(address, tmp_path).load("topics")
    assert torch.equal(artifact.learnt.tensor, samples.learnt().tensor)


def test_two_that_save_one_new_name_do_not_overwrite_each_other(address: str, tmp_path: Path) -> None:
    one, other = elsewhere(address, tmp_path), elsewhere(address, tmp_path)

    def mine() -> None:
        with one.put("topics", replace=False) as staging:
            other.save("topics", samples.learnt(), samples.card())
            (staging / "README.md").write_text("mine")

    with pytest.raises(ResourceError, match="saved by another just now"):
        mine()
    assert torch.equal(other.load("topics").learnt.tensor, samples.learnt().tensor)


# What strangers put there --------------------------------------------------------------------------


def test_a_changed_file_is_refused(address: str, tmp_path: Path) -> None:
    Library(address).save("topics", samples.learnt(), samples.card())
    store, root = fsspec.core.url_to_fs(address)
    (path,) = (path for path in store.find(root, refresh=True) if path.endswith(WEIGHTS_FILE))
    store.pipe_file(path, store.cat_file(path)[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"is not what was saved \(its hash differs\)"):
        elsewhere(address, tmp_path).load("topics")
    store.rm_file(path)
    with pytest.raises(ArtifactError, match="is not whole: files are missing"):
        elsewhere(address, tmp_path).load("topics")


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_pointer_leads_nowhere_else(name: str, address: str, tmp_path: Path) -> None:
    store, root = fsspec.core.url_to_fs(address)
    file = {"bytes": 1, "sha256": "0" * 64}
    store.pipe_file(
        f"{root}/topics.json", json.dumps({"format": 1, "card": "", "files": {name: file}}).encode()
    )
    library = elsewhere(address, tmp_path)
    with pytest.raises(ArtifactError, match="is no pointer to a prompt"):
        library.find("topics")
    (listed,) = library.list()
    assert listed.fault is not None
    library.remove("topics")
    assert list(library.names()) == []


def test_a_malformed_card_is_a_line_of_the_list(address: str, tmp_path: Path) -> None:
    store, root = fsspec.core.url_to_fs(address)
    store.pipe_file(f"{root}/topics.json", b'{"format": 1, "card": "{}", "files": {}}')
    (listed,) = elsewhere(address, tmp_path).list()
    assert listed.fault is not None
    assert f"{address}/topics/softprompt.json" in listed.fault


# A connection that is lost -------------------------------------------------------------------------


def test_a_lost_connection_harms_no_loaded_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process is gone: what is loaded answers on, at once; anything else is one sentence."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    base = tiny.base()
    with stores.s3() as url:
        stores.forget_clients()
        address = f"s3://{stores.bucket(url)}/prompts"
        for seed, name in enumerate(("topics", "other")):
            Library(address).save(name, another(seed), samples.bound(base, "prompt-tuning", samples.P))
        library = elsewhere(address, tmp_path)
        engine = Engine(base, library, pack=False)
        before = engine.generate([("topics", "5 6 7")], max_new_tokens=4)
    with engine:
        time.sleep(0.05)  # what is known of it is no longer fresh
        began = time.monotonic()
        for _ in range(20):
            assert engine.generate([("topics", "5 6 7")], max_new_tokens=4) == before
        assert time.monotonic() - began < 5
        with pytest.raises(
            ResourceError, match=r"^Cannot read s3://.*; check the address and the network\.$"
        ):
            library.load("other")
        with pytest.raises(ResourceError, match=r"^Cannot write to s3://|^Cannot read s3://"):
            library.save("third", another(3), samples.bound(base, "prompt-tuning", samples.P))
        assert engine.generate([("topics", "5 6 7")], max_new_tokens=4) == before
    stores.forget_clients()


def test_a_served_prompt_that_is_replaced_answers_anew(address: str, tmp_path: Path) -> None:
    base, card = tiny.base(), samples.bound(tiny.base(), "prompt-tuning", samples.P)
    writer = Library(address)
    writer.save("topics", another(1), card)
    library = elsewhere(address, tmp_path)
    library._place._fresh = 0.1  # type: ignore[attr-defined]
    with Engine(base, library, pack=False) as engine:
        with engine.registry.lease("topics") as version:
            first = version.digest
        writer.save("topics", another(2), card, overwrite=True)
        until = time.monotonic() + 20
        while engine.registry.lease("topics").version.digest == first:
            assert time.monotonic() < until
            time.sleep(0.05)
        tuned = load_prompt("topics", base, writer)
        assert torch.equal(tuned.front, another(2).tensor)  # type: ignore[arg-type]


# Addresses -----------------------------------------------------------------------------------------


def test_a_file_address_is_the_folder(tmp_path: Path) -> None:
    Library(tmp_path / "prompts").save("topics", samples.learnt(), samples.card())
    library = Library(f"file://{tmp_path}/prompts")
    assert isinstance(place_at(f"file://{tmp_path}/prompts"), Folder)
    assert list(library.names()) == ["topics"]


@pytest.mark.parametrize("address", ["http://host/prompts", "s3://", "ftp://a/b"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a library; give a folder, or s3://"):
        Library(address)


def test_a_missing_bucket_is_said(server: str, tmp_path: Path) -> None:
    library = elsewhere("s3://never-made/prompts", tmp_path)
    assert not library.exists()
    with pytest.raises(ResourceError, match="there is no such bucket; make it"):
        library.save("topics", samples.learnt(), samples.card())
    assert urllib.request.urlopen(server, timeout=5).status == 200


def test_only_libraries_lie_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called ``s3:`` is what nobody means."""
    monkeypatch.chdir(tmp_path)
    data = {"train": "a.jsonl", "test": "b.jsonl", "input": "{a}", "target": "{b}"}
    with pytest.raises(ConfigError, match=r"output\.runs: expected a folder of this machine"):
        parse({"data": data, "output": {"runs": "s3://bucket/runs"}})
    with pytest.raises(ConfigError, match=r"compare\.folder: expected a folder of this machine"):
        load_comparison({"data": data, "compare": {"folder": "s3://bucket/them"}})
    assert parse({"data": data, "output": {"library": "s3://bucket/prompts"}})
    assert run(["export", "x", "s3://bucket/out"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_prompt_is_imported_by_its_address_and_exported(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    card = samples.bound(base, "prompt-tuning", samples.P, name="one")
    Library(address).save("one", from_front(samples.soft(base, 1), base), card)
    assert run(["import", f"{address}/one", "--name", "two", "--library", "here"]) == 0
    assert Library("here").names() == ["two"]
    assert run(["export", "one", "out", "--library", address]) == 0
    assert (tmp_path / "out" / WEIGHTS_FILE).exists()
