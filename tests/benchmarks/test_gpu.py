"""What is to run on a card is spelt right, ends in ten minutes, and no part of it harms another."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

import gpu

PARTS = {part.name: part for part in gpu.PARTS}


@pytest.mark.parametrize("vllm", [None, Path("/env/bin/python")], ids=["alone", "with vllm"])
@pytest.mark.parametrize("rehearse", [False, True], ids=["on a card", "rehearsed"])
@pytest.mark.parametrize("name", PARTS)
def test_its_commands_are_understood(
    name: str, rehearse: bool, vllm: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = gpu.command(PARTS[name], "/scratch", rehearse=rehearse, vllm=vllm)
    assert Path(words[1]).exists()
    assert not any("{" in word for word in words)
    monkeypatch.setattr(sys, "argv", words[1:])
    asked = importlib.import_module(Path(words[1]).stem).arguments()
    assert asked.device.startswith("cpu" if rehearse else "cuda")


def test_the_limits_leave_time_within_ten_minutes() -> None:
    assert sum(part.limit for part in gpu.PARTS) <= gpu.WHOLE - 15


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, body in {
        "machine": "def describe(): return {'device': 'a card'}",
        "breaks": "print('{\"so far\": 1}'); raise ValueError('out of memory')",
        "hangs": "import time; print('{\"before\": 1}', flush=True); time.sleep(60)",
        "works": "import sys; open(sys.argv[1] + '/lines.jsonl', 'w').write('{\"rate\": 2}')",
    }.items():
        (tmp_path / f"{name}.py").write_text(body + "\n")
    parts = [
        gpu.Part("breaks", ("breaks.py",), (), (), 20),
        gpu.Part("hangs", ("hangs.py",), (), (), 5),
        gpu.Part("works", ("works.py", "{scratch}"), (), (), 20),
    ]
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "PARTS", parts)
    began = time.monotonic()
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 1
    assert time.monotonic() - began < 40
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"] == {"device": "a card"}
    how = {name: part["how"] for name, part in found["parts"].items()}
    assert how == {"breaks": "failed with 1", "hangs": "stopped after 5 s", "works": "done"}
    assert [part["found"] for part in found["parts"].values()] == [
        [{"so far": 1}],
        [{"before": 1}],
        [{"rate": 2}],
    ]
    assert "ValueError: out of memory" in found["parts"]["breaks"]["said"][-1]
    assert "out of memory" in capsys.readouterr().out


def test_a_machine_without_a_card_is_told_of_the_rehearsal(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.card().get("device") != "cpu":
        pytest.skip("there is a card")
    assert gpu.main([]) == 2
    assert "--rehearse" in capsys.readouterr().err
