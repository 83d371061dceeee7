"""What is typed about a cluster is refused in one sentence, before any work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import softprompt.cluster
from softprompt.cli.main import run
from softprompt.cli.options import BaseChoice
from softprompt.cli.serve_cluster import replicas_of, serve_by_ray
from softprompt.cluster.replica import ServeSettings
from softprompt.errors import ConfigError, ResourceError
from softprompt.library.card import BaseCard


@pytest.mark.parametrize(("typed", "found"), [(None, (1, 1)), ("3", (3, 3)), ("2:8", (2, 8))])
def test_replicas_are_a_range(typed: str | None, found: tuple[int, int]) -> None:
    assert replicas_of(typed) == found


@pytest.mark.parametrize("typed", ["8:2", "0:2", ":", "a", "1:", "1:2:3", "-1", "1:2000"])
def test_other_ranges_are_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"^--replicas takes MIN:MAX"):
        replicas_of(typed)


@pytest.mark.parametrize(
    ("words", "otherwise"),
    [
        (["serve", "--ray"], "serve without --ray"),
        (["compare", "x.toml", "--ray"], "compare without --ray"),
        (["train", "x.toml", "--ray"], "train without --ray"),
        (["inspect", "moods", "--ray"], "inspect without --ray"),
    ],
)
def test_without_ray_one_sentence_says_which_extra_brings_it(
    words: list[str], otherwise: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(words) != 0
    said = capsys.readouterr().err
    assert "A cluster needs the package ray, which is not installed" in said
    assert "pip install 'softprompt[ray]'" in said.replace("\n", " ")
    assert otherwise in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "1:2"], "--replicas is for --ray"),
        (["--ray", "--allowed-origins", "http://x.example"], "--allowed-origins is not there with --ray"),
    ],
)
def test_what_does_not_go_together_is_said(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--ray" in words:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    assert run(["serve", *words]) != 0
    assert said in capsys.readouterr().err


def test_one_run_is_not_spread_and_that_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "--data",
        "absent.jsonl",
        "--input",
        "{text}",
        "--target",
        " {label}",
        "--name",
        "moods",
    ]
    assert run([*words, "--ray"]) != 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "moods is one run, and a cluster takes the several runs of a search" in said


def test_nodes_load_the_base_as_this_process_does() -> None:
    card = BaseCard(
        name="hub/base", revision="abc", fingerprint=f"sha256:{'0' * 64}", model_type="llama",
        dtype="float32", quantisation="nf4",
    )  # fmt: skip
    own = BaseChoice(None, "float16", "cpu", True).settings_for(card)
    assert own.model_dump() == {
        "model": "hub/base", "revision": "abc", "dtype": "float16", "device": "cpu",
        "trust_remote_code": True, "quantisation": "nf4",
    }  # fmt: skip
    other = BaseChoice("mine").settings_for(card)
    assert (other.model, other.revision, other.quantisation) == ("mine", None, "nf4")


def test_a_library_of_an_absent_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert run(["list", "--library", "s3://bucket/prompts"]) != 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "A library on S3 needs the package s3fs" in said
    assert "pip install 'softprompt[s3]'" in said


def test_replicas_find_base_and_library_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    asked = list[ServeSettings]()

    def start(settings: ServeSettings, *_: Any) -> None:
        asked.append(settings)
        raise ResourceError("seen")

    stub = Mock(start=start)  # Ray may not be there
    monkeypatch.setitem(sys.modules, "softprompt.cluster.serve", stub)
    monkeypatch.setattr(softprompt.cluster, "serve", stub, raising=False)
    scale = {"cpus": 1.0, "gpus": 0.0, "drain": 1.0}
    choice = BaseChoice("base", "auto", "cpu", False)
    with pytest.raises(ResourceError, match="seen"):
        serve_by_ray(
            "auto", (1, 1), scale, "prompts", choice, {}, None,
            at=("127.0.0.1", 0), admin=False, timeout=1.0, as_json=False,
        )  # fmt: skip
    assert asked[0].base["model"] == str(tmp_path / "base")
    assert asked[0].library == str(tmp_path / "prompts")
    assert asked[0].called == "base"  # as clients know it from one server
