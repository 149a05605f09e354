"""Write the result of a benchmark: one JSON file per benchmark, from which docs/results.md is generated."""

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIR = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "bm25s", "numba", "numpy")


def anonymous_mb() -> float:
    """Memory of this process that no file backs, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return -1


class PeakMemory:
    """`with PeakMemory() as memory: …`: `memory.before` and the highest, `memory.peak`, of `anonymous_mb`."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = anonymous_mb()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        done = False
        while not done:
            done = self._done.wait(0.02)
            self.peak = max(self.peak, anonymous_mb())


def commit() -> str:
    """The commit of this checkout, see `commit_of`."""
    return commit_of(ROOT)


def commit_of(checkout: Path) -> str:
    """The commit that is checked out there, with "+" where tracked files outside benchmarks/results differ from it."""
    try:
        head = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(checkout), "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def machine() -> str:
    """Platform, processor, usable cores and, where there is one, the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{platform.system()} {platform.machine()}", model, f"{cores} cores"]
    torch = sys.modules.get("torch")  # a benchmark that never imported torch used no GPU
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)


def versions() -> dict[str, str]:
    """Python and the packages that can move a figure, as installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The running command as it is typed in the repository root."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", shown, *sys.argv[1:]])


def write_result(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    note: str = "",
    command: str | None = None,
    commits: str | None = None,
    results_dir: Path = RESULTS_DIR,
) -> Path:
    """Write `benchmarks/results/NAME.json` atomically and return its path.

    Args:
        name: file name without suffix.
        title: heading of the table in docs/results.md.
        rows: one dict per row of the table, all with the same keys in the same order.
        note: what a reader must know to judge the figures; plain Markdown.
        command: the command that repeats the measurement; default: the running one.
        commits: those of the code that was measured; default: the one that is checked out.

    Raises:
        ValueError: no rows, or rows whose columns differ.
    """
    if not rows:
        raise ValueError(f"The benchmark {name!r} has no rows: give at least one.")
    for number, row in enumerate(rows):
        if list(row) != list(rows[0]):
            raise ValueError(f"Row {number} of benchmark {name!r} has columns {list(row)}, the first {list(rows[0])}.")
    result = {
        "benchmark": name,
        "title": title,
        "command": command or command_line(),
        "commit": commits or commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
        "note": note,
    }
    results_dir.mkdir(parents=True, exist_ok=True)
    path = results_dir / f"{name}.json"
    beside = path.with_suffix(f".tmp{os.getpid()}")
    beside.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path
