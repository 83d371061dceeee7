"""The tutorial of the tickets: its own commands, from a messy file to an answer by curl."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.shell import Shell
from cli.test_serve import serving

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "tickets.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial ends with curl, which is not here")
def test_its_commands_lead_to_an_answer(shell: Shell) -> None:
    """As they stand, but for a tiny base, a short training and any free port."""
    assert len(COMMANDS) <= 5
    shutil.copy(ROOT / "examples" / "tickets" / "tickets.csv", "tickets.csv")
    init, train, serve, curl = COMMANDS
    looked = shell(*init[1:], "--model", "base")
    assert looked.code == 0
    for word in ("297, and 3 empty", "outage (50)", "'biling' is 'billing'"):
        assert word in looked.out
        assert word in PAGE
    learnt = shell(*train[1:], "--epochs", "1", "--dtype", "float32", "--set", "train.max_steps=2")
    assert learnt.code == 0
    note = "3 empty rows were left out of"
    assert note in learnt.err
    assert note in PAGE
    assert (serve[1], serve[-1]) == ("serve", "&")
    with serving(shell) as (_, said):
        mine = [word.replace("http://127.0.0.1:8000", said["url"]) for word in curl]
        answer = json.loads(subprocess.run(mine, capture_output=True, check=True, timeout=60).stdout)
    labels = {"access", "billing", "cancellation", "feature", "outage", "shipping"}
    assert set(answer["data"][0]["probabilities"]) == labels
    shown = json.loads(PAGE[PAGE.index('{"object":"list"') :].split("\n", 1)[0])
    assert shown.keys() == answer.keys()
    assert shown["data"][0].keys() == answer["data"][0].keys()
