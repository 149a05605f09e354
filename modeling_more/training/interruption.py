"""This module lets Ctrl-C end a program with one line and the exit code 130, from its first second on."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit code of what Ctrl-C ended, as shells have it


def end_at_once() -> None:
    """Let Ctrl-C end the program at once, until `raise_again`: for the seconds in which a script imports libraries.

    Nothing can be lost yet, and an exception from the middle of an import is a long traceback, or is swallowed there.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what runs in the background may ignore it
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if `end_at_once` was called."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(told: str = "") -> SystemExit:
    """Say that the program was interrupted, with what is `told` of it, and return the exception that ends it."""
    end = SystemExit(f"\ninterrupted{told}")
    print(end, file=sys.stderr)  # Python would do so, but with the exit code 1
    end.code = INTERRUPTED
    return end


def _end(*_: Any) -> NoReturn:
    os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)
