"""Whoever has multiplied can let its helper threads go, and multiply again as before; memory goes back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from softprompt.base.process import _GNU_OPENMP, _libraries, let_workers_go, release_heap

PROGRAM = """
import os, threading, torch
from softprompt.base.process import let_workers_go

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
    _libraries(*_GNU_OPENMP) is None or not os.path.isdir("/proc/self/task"),
    reason="torch's threads are not GNU OpenMP's here",
)
def test_helpers_end_and_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    alone, helped, after, same, again = done.stdout.split()
    assert int(helped) == int(alone) + 2
    assert int(after) == int(alone)
    assert same == "True"
    assert again == helped


def test_both_are_safe_at_any_time() -> None:
    for _ in range(2):
        let_workers_go()
        release_heap()
