"""Whoever has multiplied can let its helper threads go, and multiply again as before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from softprompt.base.workers import _runtime, let_workers_go

PROGRAM = """
import os, threading, torch
from softprompt.base.workers import let_workers_go

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
alone = threads()
a = torch.linspace(0, 1, 2**20)
first = a.exp()
helped = threads()
let_workers_go()
after = threads()
same = torch.equal(a.exp(), first)
print(alone, helped, after, same, threads())
"""


@pytest.mark.skipif(
    _runtime() is None or not os.path.isdir("/proc/self/task"),
    reason="torch's threads are not GNU OpenMP's here",
)
def test_helpers_end_and_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    alone, helped, after, same, again = done.stdout.split()
    assert int(helped) == int(alone) + 2
    assert int(after) == int(alone)
    assert same == "True"
    assert again == helped


def test_it_is_safe_where_nothing_was_multiplied() -> None:
    let_workers_go()
    let_workers_go()
