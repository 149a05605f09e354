"""Fuzz the readers, guided by coverage (atheris): each target in a process of its own, started again when it dies.

python tests/soak/fuzz.py --executions 1000000 --seconds 1800

Inputs at which a reader fails are kept in tests/soak/crashes, one for each place in the code: test_crashes.py tries
them ever after.
"""

import argparse
import hashlib
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(HERE), str(HERE.parent), str(ROOT)]
SLOW = 30  # seconds on a busy machine, after which a process hangs
MEMORY = 4096  # MB that a process may have
COUNTS = struct.Struct("<qq")  # how many inputs were tried, and how long the last one is, which stands behind
NOTES = 65_536  # bytes of the file that is left of a dead process
DEATHS = 50  # of one target's processes, after which it is given up


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000, help="inputs to try, of all targets together")
    parser.add_argument("--seconds", type=float, default=7200, help="time after which no target goes on")
    parser.add_argument("--targets", nargs="+", default=[], help="names of targets (default: all)")
    parser.add_argument("--crashes", type=Path, default=HERE / "crashes", help="folder for inputs that fail")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


# ---------------------------------------------------------------- the process of one target


def fuzz_one(args: argparse.Namespace) -> None:
    """Try inputs until libFuzzer ends the process."""
    import atheris

    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "modeling_more").rglob("*.py")}
    # numba compiles bytecode, which must be as Python made it
    compiled = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path, text in sources.items() if "@njit" in text
    ]
    with atheris.instrument_imports(include=["modeling_more"], exclude=compiled):
        from fuzz_targets import TARGETS
        from fuzz_verdict import judge
    import logging

    logging.disable(logging.CRITICAL)
    target, work = TARGETS[args.one], args.work
    corpus, folder = work / "corpus", work / "folder"
    for made in (corpus, folder):
        made.mkdir(exist_ok=True)
    for name, seed in target.seeds().items():
        (corpus / name).write_bytes(seed)
    words = ["".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", "surrogatepass")) for word in target.words]
    (work / "words").write_text("".join(f'"{word}"\n' for word in words), encoding="utf-8")
    with open(args.notes, "r+b") as file:
        notes = mmap.mmap(file.fileno(), NOTES)

    def one(data: bytes) -> None:
        notes[: COUNTS.size] = COUNTS.pack(COUNTS.unpack(notes[: COUNTS.size])[0] + 1, len(data))
        notes[COUNTS.size : COUNTS.size + len(data)] = data
        if crash := judge(target, data, folder):
            keep(args.crashes, args.one, data, crash.what, crash.key)

    judge(target, b"", folder)  # what is built and compiled once is no input's time
    options = [
        f"-runs={args.executions}", f"-max_total_time={max(1, int(args.seconds))}", f"-max_len={target.longest}",
        f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}", f"-seed={args.seed}", f"-artifact_prefix={work}/died-",
        *([f"-dict={work / 'words'}"] if words else []), "-print_final_stats=1", "-verbosity=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def keep(crashes: Path, name: str, data: bytes, what: str, key: str) -> None:
    """Write an input that fails, if none is kept that fails at the same place, and a note on what it does."""
    crashes.mkdir(exist_ok=True)
    file = crashes / f"{name.replace(' ', '_')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if not file.exists():
        file.write_bytes(data)
        print(f"CRASH {file.name}: {what}", flush=True)


# ---------------------------------------------------------------- all targets


def run_target(name: str, executions: int, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run a target's process, again when it died, and return what `main` prints of it."""
    began, done, deaths, edges = time.monotonic(), 0, 0, 0
    found: list[str] = []
    work = Path(tempfile.mkdtemp(prefix="more-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    notes = work / "notes"
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]),
        "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(work / "numba"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        while done < executions and (left := seconds - (time.monotonic() - began)) > 1 and deaths < DEATHS:
            notes.write_bytes(b"\0" * NOTES)
            command = [sys.executable, str(HERE / "fuzz.py"), "--one", name, "--executions", str(executions - done)]
            command += ["--seconds", str(left), "--notes", str(notes), "--work", str(work)]
            command += ["--crashes", str(args.crashes), "--seed", str(args.seed + deaths)]
            with open(work / "log", "wb") as log:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
            log_text = (work / "log").read_text(errors="replace")
            count, length = COUNTS.unpack_from(notes.read_bytes())
            done += count
            found += re.findall(r"^CRASH .*", log_text, re.M)
            edges = max([edges, *map(int, re.findall(r"cov: (\d+)", log_text))])
            if code != 0:
                deaths += 1
                if not count:
                    raise RuntimeError(f"the process of {name} ended with {code}: {log_text[-2000:]}")
                last = notes.read_bytes()[COUNTS.size : COUNTS.size + length]
                found += _died(work, name, code, log_text, args.crashes, last)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "target": name, "executions": done, "wanted": executions,
        "seconds": round(time.monotonic() - began), "edges": edges, "deaths": deaths, "found": sorted(set(found)),
    }  # fmt: skip


def _died(work: Path, name: str, code: int, log: str, crashes: Path, last: bytes) -> list[str]:
    """Keep the input at which a process died: libFuzzer's, or else the last one that was tried."""
    reason, data = "died", last
    for artifact in work.glob("died-*"):
        reason, data = artifact.name.split("-")[1], artifact.read_bytes()  # crash, timeout, oom
        artifact.unlink()
    place = re.findall(r'File "[^"]*modeling_more/([^"]+)", line (\d+)', log)
    ended = signal.Signals(-code).name if code < 0 else code
    what = f"{reason}, the process ended with {ended} {':'.join(place[-1]) if place else ''}".strip()
    before = set(crashes.glob("*"))
    keep(crashes, name, data, what, f"died {what}")
    return [f"CRASH {file.name}: {what}" for file in sorted(set(crashes.glob("*")) - before)]


def main() -> None:
    args = parse()
    if args.one:
        return fuzz_one(args)
    sys.path[:0] = PATHS
    from fuzz_targets import TARGETS

    names = args.targets or list(TARGETS)
    total = sum(TARGETS[name].share for name in names)
    for name in names:
        share = TARGETS[name].share / total
        result = run_target(name, max(1, round(args.executions * share)), args.seconds * share, args)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
