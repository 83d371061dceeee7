"""Tests of configurations in files: paths, faults by file and line, and TOML written and read back."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from configs import DATA, settings
from softprompt.config import digest, dump_toml, load, parse
from softprompt.errors import ConfigError, ResourceError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Files -------------------------------------------------------------------------------------------

TASK = """
name = "bbc-topics"
[data]
train = "train.jsonl"
validation = "../shared/validation.jsonl"
test = "bundled:bbc/test"
input = "Headline: {text}"
target = " {label}"
labels = ["yes", "no"]
"""


def test_data_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs" / "task.toml", TASK)
    monkeypatch.chdir(tmp_path)
    data = load("jobs/task.toml").data
    assert data.train == str(tmp_path / "jobs" / "train.jsonl")
    assert Path(data.validation or "").resolve() == (tmp_path / "shared" / "validation.jsonl").resolve()
    assert data.test == "bundled:bbc/test"


def test_data_paths_of_an_override_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs" / "task.toml", TASK)
    monkeypatch.chdir(tmp_path)
    data = load(Path("jobs/task.toml"), ["data.train=mine.jsonl", "data.test=hub:org/name"]).data
    assert (data.train, data.test) == (str(tmp_path / "mine.jsonl"), "hub:org/name")


@pytest.mark.parametrize("source", ["bundled:x/train", "hub:org/name", "https://x.org/a.csv", "/a/b.csv"])
def test_names_and_absolute_paths_are_left_alone(source: str, tmp_path: Path) -> None:
    assert parse(settings(data={"train": source}), folder=tmp_path).data.train == source


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert parse(settings(data={"train": "~/a.csv"}), folder="x").data.train == str(tmp_path / "a.csv")


def test_parse_leaves_paths_alone_without_a_folder_and_takes_path_objects() -> None:
    data = parse(settings(data={"train": "a.csv", "test": Path("b.csv")})).data
    assert (data.train, data.test) == ("a.csv", "b.csv")


def test_windows_files_with_a_byte_order_mark_load(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TASK.replace("\n", "\r\n").encode())
    assert load(path).name == "bbc-topics"


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('name = "a"\n[data]\ninput = abc\n', "line 3", "invalid value at column 9; text needs quotes"),
        ('name = "a"\n\n[data\n', "line 3", "expected ']'"),
        ('name = "a"\ninput = "b', "line 2", "unterminated string"),
        ("seed = 1\nseed = 2\n", "line 2", "cannot overwrite a value"),
    ],
)
def test_malformed_toml_names_file_and_line(tmp_path: Path, text: str, place: str, reason: str) -> None:
    path = write(tmp_path / "task.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, {place}: this is not valid TOML, {reason}")


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(b'name = "a"\n# caf\xe9\n')
    with pytest.raises(ConfigError, match="line 2: this is not UTF-8 text"):
        load(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 9000, "a = " + "1" * 9000])
def test_absurd_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="too deeply or holds a number that is too long"):
        load(write(tmp_path / "task.toml", text))


def test_a_missing_file_takes_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"There is no configuration file at {str(path)!r}; check the path."


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name the TOML file in it"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ResourceError, match="cannot be read: Permission denied"):
        load(tmp_path / "task.toml")


# Writing -----------------------------------------------------------------------------------------


def test_the_resolved_configuration_is_readable() -> None:
    text = dump_toml(
        parse(settings(data={"labels": {"good": "yes", "very bad": "no"}}, train={"clip": "none"}))
    )
    assert text.startswith('name = "prompt"\nseed = 0\n\n[base]\nmodel = "smollm2-135m"\n')
    assert 'input = "Headline: {text}\\nTopic:"\n' in text
    assert '\n[data.labels]\ngood = "yes"\n"very bad" = "no"\n\n[method]\nkind = "prompt-tuning"\n' in text
    assert 'init = "labels"\n' in text
    assert 'clip = "none"\n' in text
    assert "patience" not in text
    assert text.endswith("overwrite = false\n")


def test_long_lists_take_a_line_for_each_item() -> None:
    labels = [f"label number {n}" for n in range(20)]
    config = parse(settings(data={"labels": labels}))
    assert 'labels = [\n    "label number 0",\n' in dump_toml(config)
    assert parse(tomllib.loads(dump_toml(config))) == config


def test_a_written_file_loads_back(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    config = load(write(tmp_path / "task.toml", TASK))
    assert load(write(tmp_path / "runs" / "config.toml", dump_toml(config))) == config


def random_text(rng: random.Random) -> str:
    alphabet = "abz019 .=#[]{}\"'\\\n\r\t\b\f\x00\x1f\x7f\x85\u2028éß中🙂\ufeff"
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30)))


def random_number(rng: random.Random, low: float, high: float) -> float:
    return rng.choice([rng.uniform(low, high), low + (high - low) * 10 ** rng.uniform(-12, -1)])


def random_labels(rng: random.Random) -> Any:
    words = [f"{n}{random_text(rng)}" for n in range(rng.randint(2, 12))]
    return rng.choice(["none", words, {word: f"{random_text(rng)}{n}" for n, word in enumerate(words)}])


def random_method(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"kind": "text", "front": random_text(rng)}
    init = rng.choice([None, "text", "vocabulary", "random", "artifact"])
    sources = {"init_text": random_text(rng), "init_artifact": random_text(rng)}
    kept = {key: text for key, text in sources.items() if rng.random() < 0.5 or key == f"init_{init}"}
    return {"front": random_text(rng), **({"init": init} if init else {}), **kept}


def random_settings(rng: random.Random) -> dict[str, Any]:
    return {
        "name": f"n{rng.randint(0, 99)}",
        "seed": rng.randint(0, 2**32 - 1),
        "base": {"model": random_text(rng), "revision": rng.choice([None, random_text(rng)])},
        "data": {
            "train": rng.choice([None, random_text(rng)]),
            "input": random_text(rng),
            "target": random_text(rng),
            "labels": random_labels(rng),
            "end_of_text": rng.choice([None, True, False]),
            "train_rows": rng.choice(["none", None, rng.randint(1, 10**18)]),
            "validation_fraction": random_number(rng, 1e-9, 1 - 1e-9),
        },
        "method": random_method(rng),
        "train": {
            "learning_rate": rng.choice([10 ** rng.uniform(-300, 300), rng.randint(1, 9)]),
            "clip": rng.choice(["none", None, 1, random_number(rng, 1e-9, 1e9)]),
            "warmup": rng.choice([0, random_number(rng, 0, 1 - 1e-9)]),
            "patience": rng.choice([None, 1, 2]),
        },
    }


@pytest.mark.parametrize("seed", range(60))
def test_random_configurations_survive_the_round_trip(seed: int, tmp_path: Path) -> None:
    config = parse(random_settings(random.Random(seed)), folder=tmp_path)
    path = tmp_path / "config.toml"
    path.write_bytes(dump_toml(config).encode())
    again = load(path)
    assert again == config
    assert parse(tomllib.loads(dump_toml(config))) == config
    assert dump_toml(again) == dump_toml(config)
    assert digest(again) == digest(config)
    assert parse(config) == config
    assert parse(config.model_dump()) == config


def test_equal_settings_have_equal_digests() -> None:
    plain = parse({"data": DATA})
    spelled = parse({"train": {"clip": 1, "min_steps": 200}, "method": {"init": "vocabulary"}, "data": DATA})
    assert digest(plain) == digest(spelled)
    assert len(digest(plain)) == 64


@pytest.mark.parametrize("change", ["seed=1", "train.clip=none", "data.chat=true", "method.init=random"])
def test_other_settings_have_other_digests(change: str) -> None:
    assert digest(parse({"data": DATA}, [change])) != digest(parse({"data": DATA}))


def test_the_order_of_labels_counts_in_the_digest() -> None:
    first, second = (
        parse(settings(data={"labels": labels})) for labels in ({"a": "x", "b": "y"}, {"b": "y", "a": "x"})
    )
    assert digest(first) != digest(second)
