"""Ctrl-C in two steps: the first asks for a good end, the second is one. Knows signals, not training."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts"]

_ASKED = "\nFinishing this step, then saving the best so far; press Ctrl-C again to stop at once.\n"


class Interrupts:
    """While it is open, the first Ctrl-C only sets ``asked``; the second raises ``KeyboardInterrupt``."""

    def __init__(self, said: str = _ASKED) -> None:
        """said: what to print at the first press."""
        self._said = said.encode()
        self._asked = False
        self._before: Any = None

    def asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._asked

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not print: a signal may come while Python's own streams are being written.
        os.write(2, self._said)
