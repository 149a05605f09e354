"""Watch what a program runs, unpickles, starts, connects to and opens, all of its Python processes included.

python tests/audit.py found.json python run_ner.py --dataset demo --use_cpu

writes a JSON list of what has no reason in `REASONS`; `watched` does the same from a test. Each process installs an
audit hook before anything else is imported, by a `sitecustomize` on $PYTHONPATH, and adds a line for each event as it
happens, so that a killed process has told all until then.
"""

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".nbi", ".nbc", ".joblib")
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
CONNECTED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")

Event = dict[str, Any]


def _trusted() -> tuple[str, ...]:
    """Folders whose code was installed or is this repository's."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [str(ROOT / name) for name in ("modeling_more", "dataset_scripts", "benchmarks", "tests")]
    own += [str(file) for file in ROOT.glob("run_*.py")]
    return tuple(dict.fromkeys(os.path.realpath(one) for one in [*installed, *own]))


TRUSTED = _trusted()


@cache
def _is_trusted(file: str) -> bool:
    real = os.path.realpath(file)
    return any(real == one or real.startswith(one + os.sep) for one in TRUSTED)


@dataclass
class _Recorder:
    """A hook that writes an event a line."""

    out: int  # an open file, to which whole lines are appended
    canaries: tuple[str, ...]  # folders of which every opening is told
    seen: set[str] = field(default_factory=set)
    busy: threading.local = field(default_factory=threading.local)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        told = self._what(event, args)
        if told is None or getattr(self.busy, "on", False):
            return
        self.add(event, told)

    def add(self, event: str, what: str) -> None:
        self.busy.on = True
        try:
            stack, imported = _stack()
            if imported and event in ("exec", "compile"):  # one line is enough of each module
                stack, what = [f"{imported}:0:<module>"], ""
            line = json.dumps({"event": event, "what": what[:300], "importing": imported, "stack": stack[:12]})
            if line not in self.seen:
                self.seen.add(line)
                os.write(self.out, f"{line}\n".encode())
        finally:
            self.busy.on = False

    def _what(self, event: str, args: tuple[Any, ...]) -> str | None:
        """What is told of an event; None for those that are of no interest."""
        if event == "open":
            return self._opened(args[0])
        if event == "exec":
            code = args[0]
            file = code.co_filename if isinstance(code, CodeType) else "?"
            known = file.startswith("<frozen ") or (os.path.isabs(file) and _is_trusted(file))
            return None if known else f"{file}: {getattr(code, 'co_name', '')}"
        if event == "compile":
            source, name = args
            file = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "<unknown>"
            if os.path.isabs(file) and _is_trusted(file):
                return None
            text = source if isinstance(source, str) else bytes(source or b"").decode(errors="replace")
            return f"{file}: {' '.join(text.split())[:200]}"
        if event == "import":  # of an extension module; others are told by exec
            return None if args[1] is None or _is_trusted(args[1]) else f"{args[0]} from {args[1]}"
        if event == "ctypes.dlopen":
            name = args[0]
            return None if isinstance(name, str) and os.path.isabs(name) and _is_trusted(name) else str(name)
        if event == "pickle.find_class":
            return f"{args[0]}.{args[1]}"
        if event in STARTED:
            return f"{args[0]!r} {args[1]!r}" if len(args) > 1 else f"{args[0]!r}"
        if event in CONNECTED:
            place = args[1] if event in ("socket.connect", "socket.sendto") else args[:2]
            return ":".join(map(str, place[:2])) if isinstance(place, tuple) else str(place)
        return None

    def _opened(self, name: Any) -> str | None:
        if not isinstance(name, str | bytes | os.PathLike):
            return None
        file = os.fsdecode(name)
        if file.endswith(PICKLED) and not file.startswith("/proc"):
            return file
        if self.canaries and os.path.realpath(file).startswith(self.canaries):
            return file
        return None


def _stack() -> tuple[list[str], str]:
    """The lines that led here, innermost first, and the installed module whose import they are part of, if any."""
    frame: FrameType | None = sys._getframe(2)
    found, imported, installed = [], "", True
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen importlib"):
            found.append(f"{_short(file)}:{frame.f_lineno}:{frame.f_code.co_name}")
            installed = installed and (file.startswith("<") or _is_trusted(file))
            if not imported and installed and frame.f_code.co_name == "<module>" and os.path.isabs(file):
                imported = _short(file) if frame.f_globals.get("__name__") != "__main__" else ""
        frame = frame.f_back
    return found, imported


def _short(file: str) -> str:
    for one in (str(ROOT), *TRUSTED):
        if file.startswith(one + os.sep):
            return file[len(one) + 1 :].replace(os.sep, "/")
    return file


def install(out: str, canaries: Sequence[str] = ()) -> None:
    """Install the hook in this process; it stays as long as the process lives."""
    written = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    recorder = _Recorder(written, tuple(os.path.realpath(one) for one in canaries))
    sys.addaudithook(recorder)

    # unpickling of plain values asks for no class, and is no event
    def telling(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            recorder.add(name, type(args[0]).__name__ if args else "")
            return function(*args, **kwargs)

        return told

    class Unpickler(pickle.Unpickler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            recorder.add("pickle.Unpickler", type(args[0]).__name__ if args else "")
            super().__init__(*args, **kwargs)

    own: Any = pickle
    own.load, own.loads = telling("pickle.load", pickle.load), telling("pickle.loads", pickle.loads)
    own.Unpickler = Unpickler


RUN, UNPICKLED = ("exec", "compile"), ("open", "pickle.load", "pickle.loads", "pickle.find_class")
#: (events, parts of `what`, part of one of the `INNERMOST` lines, the reason why it is right)
REASONS: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (UNPICKLED, ("__pycache__/", "numba.", "copyreg.", "builtins.", "numpy.", "bytes", "Reader"),
     "numba/core/caching.py",
     "numba keeps what it compiled of our own functions, in __pycache__ beside them, as a pickle"),
    (UNPICKLED, ("",), "numba/core/serialize.py", "numba takes what it has just compiled through a pickle in memory"),
    (("compile",), ("",), "ast.py:", "text is parsed to a tree, not run: the header of an array, by literal_eval"),
    (RUN, ("",), "hf_argparser.py", "transformers reads the types of our options, which stand in our code as text"),
    (("compile",), ("torch.classes.",), "typing.py", "torch writes a type of its own as text"),
    (("ctypes.dlopen",), ("None",), "modeling_more/files.py",
     "the process's own C library is asked to let two folders change places"),
)  # fmt: skip
INNERMOST = 6
IMPORTING = "an installed module makes code of its own, or opens a library, while it is imported"
CONNECTING = "connects to an address that the test allows"


def reason_of(event: Event, hosts: Sequence[str] = ()) -> str:
    """Return the reason for which an event is right; empty if there is none."""
    if event["importing"] and event["event"] in (*RUN, "ctypes.dlopen"):
        return IMPORTING
    if event["event"] in CONNECTED and event["what"] in hosts:
        return CONNECTING
    for events, parts, where, reason in REASONS:
        if event["event"] in events and any(part in event["what"] for part in parts):
            if any(where in line for line in event["stack"][:INNERMOST]):
                return reason
    return ""


@dataclass
class Watched:
    """What was seen of a command.

    Attributes:
        done: as of `subprocess.run`.
        found: the events without a reason.
        reasons: how many events each reason holds for.
    """

    done: subprocess.CompletedProcess[str]
    found: list[Event]
    reasons: Counter[str]


def watched(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    canaries: Sequence[str | Path] = (),
    hosts: Sequence[str] = (),
    **options: Any,
) -> Watched:
    """Run a command whose Python processes are watched.

    Args:
        env: its whole environment; default: that of this process.
        canaries: folders that it has no business in: each opening of a file there is an event.
        hosts: addresses `HOST:PORT` that it may connect to.
        options: of `subprocess.run`.
    """
    with TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(
            "import importlib.util, os, sys\n"
            f"_spec = importlib.util.spec_from_file_location('_audit', {str(Path(__file__).resolve())!r})\n"
            "_audit = sys.modules['_audit'] = importlib.util.module_from_spec(_spec)\n"
            "_spec.loader.exec_module(_audit)\n"
            f"_audit.install(os.path.join({folder!r}, f'{{os.getpid()}}.jsonl'), {[str(one) for one in canaries]!r})\n"
        )
        given = dict(os.environ if env is None else env)
        given["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, given.get("PYTHONPATH")]))
        done = subprocess.run(command, env=given, capture_output=True, text=True, **options)
        files = sorted(Path(folder).glob("*.jsonl"))
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if not files:
            raise RuntimeError(f"no process of {command[0]} was watched: {done.stderr[-500:]}")
    events = [json.loads(line) for line in dict.fromkeys(lines)]
    reasons = [reason_of(event, hosts) for event in events]
    found = [event for event, reason in zip(events, reasons, strict=True) if not reason]
    return Watched(done, found, Counter(filter(None, reasons)))


def main() -> None:
    out, *command = sys.argv[1:]
    seen = watched(command)
    sys.stdout.write(seen.done.stdout)
    sys.stderr.write(seen.done.stderr)
    Path(out).write_text(json.dumps(seen.found, indent=2) + "\n", encoding="utf-8")
    for reason, number in seen.reasons.most_common():
        print(f"{number:5} {reason}", file=sys.stderr)
    sys.exit(seen.done.returncode or bool(seen.found))


if __name__ == "__main__":
    main()
