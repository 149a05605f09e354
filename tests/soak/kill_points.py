"""Count the file operations of a process below a folder, and end it by SIGKILL before or half-way through one of them.

Python tells an audit hook of every file that it opens, renames or removes. Writers in C, C++ and Rust (safetensors,
torch, Arrow, FAISS) open their files unseen: their functions are wrapped and tell it, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATHS = {  # events whose arguments name a path, and at which place
    "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.link": 1, "os.symlink": 1, "os.truncate": 0,
}  # fmt: skip
_FOLDER_FD = {
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 2,
    "os.rename": 3,
}  # argument that a relative path starts from
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class KillPoints:
    """The file operations of this process below `root`: numbered from 1, told in a log, ended at one of them.

    Args:
        log: file that gets a line for each operation.
        at: number of the operation before which the process ends; 0: none.
        half: end it half-way through the writing of that file instead: half of its bytes are there. Where the
            operation opens no file for writing, it ends before it as well.
    """

    def __init__(self, root: Path, log: Path, at: int = 0, half: bool = False) -> None:
        self.root, self.at, self.half = os.path.realpath(root), at, half
        self.count = 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._cut: str | None = None  # file to be cut to half before the next operation of any kind
        self._busy = threading.local()

    def install(self) -> None:
        sys.addaudithook(self._see)
        _wrap_writers(self.operation)
        _wrap_requests(self.request)

    def finish(self) -> None:
        """Tell that the process ends, which is half-way through a file that was its last."""
        if self._cut is not None:
            self._kill()

    def operation(self, kind: str, path: str | None, writes: bool = True) -> None:
        """Count an operation on a path, and end the process where it is the one."""
        if path is None or not os.path.realpath(path).startswith(self.root + os.sep) or self._is_lock(path):
            return
        if self._cut is not None:
            self._kill()
        if not writes:
            return
        if self._count(kind, os.path.relpath(path, self.root)):
            self._cut = os.path.realpath(path)

    def request(self, method: str, path: str) -> None:
        """Count a request that changes something on a server, as an operation that has no half."""
        if self._cut is not None:
            self._kill()
        if method in ("POST", "PUT", "DELETE"):
            self._count(method, path)

    def _count(self, kind: str, what: str) -> bool:
        """Count and log an operation; end the process before the one to end at, or return that this is it."""
        self.count += 1
        os.write(self._log, f"{self.count} {kind} {what}\n".encode())
        if self.count == self.at and not (self.half and kind == "write"):
            self._kill()
        return self.count == self.at

    @staticmethod
    def _is_lock(path: str) -> bool:
        return path.endswith(".lock")  # nothing is written to it, the system frees it

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if (event != "open" and event not in _PATHS and event != "os.chmod") or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            if event == "open":
                path, mode, flags = args
                if isinstance(path, int) or path is None:
                    return
                writes = any(one in mode for one in "wax+") if isinstance(mode, str) else bool(flags & _WRITES)
                self.operation("write", os.fsdecode(path), writes)
            elif event == "os.chmod":
                if not isinstance(args[0], int):
                    self.operation("chmod", os.fsdecode(args[0]), False)
            else:
                self.operation(event.removeprefix("os."), self._path(event, args))
        finally:
            self._busy.now = False

    def _path(self, event: str, args: tuple[Any, ...]) -> str | None:
        path = args[_PATHS[event]]
        if isinstance(path, int):
            return None
        path = os.fsdecode(path)
        place = _FOLDER_FD.get(event)
        if not os.path.isabs(path) and place is not None and len(args) > place and args[place] >= 0:
            return os.path.join(os.readlink(f"/proc/self/fd/{args[place]}"), path)
        return path

    def _kill(self) -> None:
        if self._cut is not None and os.path.isfile(self._cut):
            os.truncate(self._cut, os.path.getsize(self._cut) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def _wrap_writers(tell: Callable[[str, str | None], None]) -> None:
    """Make the writers that no audit hook sees tell of the file that they open."""
    import faiss
    import pyarrow
    import safetensors.torch
    import torch

    def wrapped(function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            found = args[place] if len(args) > place else options.get("filename", options.get("f"))
            if isinstance(found, str | os.PathLike):
                tell("write", os.fspath(found))
            return function(*args, **options)

        return write

    safetensors.torch.serialize_file = wrapped(safetensors.torch.serialize_file, 1)
    torch.save = wrapped(torch.save, 1)
    faiss.write_index = wrapped(faiss.write_index, 1)
    pyarrow.OSFile = wrapped(pyarrow.OSFile, 0)  # type: ignore[misc]


def _wrap_requests(tell: Callable[[str, str], None]) -> None:
    """Make the client of the Hub tell of its requests."""
    import httpx

    send = httpx.HTTPTransport.handle_request

    def told(transport: Any, request: Any) -> Any:
        tell(request.method, request.url.path)
        return send(transport, request)

    httpx.HTTPTransport.handle_request = told  # type: ignore[method-assign]
