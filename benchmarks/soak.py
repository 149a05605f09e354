"""Soak the library: fuzz its readers, kill its runs, watch its memory, audit what it opens; write results/soak_*.json.

python benchmarks/soak.py                                    all of it, about an hour on two cores
python benchmarks/soak.py --executions 20000 --every 20 --steps 100 --calls 500 --results_dir OUT

Inputs at which a reader fails are kept in tests/soak/crashes, where the tests try them ever after. The program ends
with 1 where anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common import RESULTS_DIR, ROOT, write_result

SOAK = ROOT / "tests" / "soak"
Row = dict[str, Any]
TITLES = {
    "inputs": "Soak: inputs that readers try",
    "memory": "Soak: memory over time",
    "audit": "Soak: what runs, unpickles, starts, connects",
    "kills": "Soak: kills at file operations",
}
NOTES = {
    "inputs": (
        "Rows or one sentence that names the file, in 30 s, without a crash; inputs are found by coverage (atheris), "
        "indices with and without digests that fit. A target also ends with its share of the time: how many inputs "
        "were planned stands beside how many were tried."
    ),
    "memory": "Least squares over all but the first quarter.",
    "audit": (
        "Events of Python's audit hooks in all processes of a run that run, unpickle, start or connect to things; "
        "failed: those without a reason."
    ),
    "kills": (
        "SIGKILL before each file operation and request of a run (each n-th with --every n), and half-way through "
        "each file; then the same command again, and every file must equal those of an unbroken run, bit for bit, "
        "with nothing left over."
    ),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="what to do")
    parser.add_argument("--executions", type=int, default=1_000_000, help="inputs that the fuzzer tries")
    parser.add_argument("--seconds", type=int, default=7200, help="time after which it stops")
    parser.add_argument("--every", type=int, default=1, help="kill at each n-th operation only")
    parser.add_argument("--steps", type=int, default=2000, help="training steps over which memory is measured")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of a pipeline, likewise")
    parser.add_argument("--results_dir", type=Path, default=RESULTS_DIR, help="folder of soak_*.json")
    return parser.parse_args()


def lines_of(script: str, *arguments: Any) -> list[dict[str, Any]]:
    """Run a script of tests/soak and return its lines of JSON; what else it says goes to the screen.

    Raises:
        subprocess.CalledProcessError: it ended with an error.
    """
    command = [sys.executable, str(SOAK / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def row(what: str, tried: int, failed: list[str], more: str, began: float) -> Row:
    """Return a row of the table, and tell on the screen what failed."""
    seconds = round(time.monotonic() - began)
    print(f"{what}: {tried} tried, {len(failed)} failed, {seconds} s", file=sys.stderr)
    for one in failed:
        print(f"  {one}", file=sys.stderr)
    return {"what": what, "tried": tried, "failed": len(failed), "more": more, "seconds": seconds}


def fuzz(args: argparse.Namespace) -> list[Row]:
    began, rows = time.monotonic(), []
    for one in lines_of("fuzz.py", "--executions", args.executions, "--seconds", args.seconds):
        failed = one["found"]
        more = f"{one['wanted']} planned, {one['edges']} branches of our code seen"
        rows.append(
            {**row(f"inputs: {one['target']}", one["executions"], failed, more, began), "seconds": one["seconds"]}
        )
    return rows


def kill(args: argparse.Namespace) -> list[Row]:
    names = json.loads(subprocess.check_output([sys.executable, str(SOAK / "kills.py"), "--list"], text=True))

    def one_run(name: str) -> Row:
        began = time.monotonic()
        (one,) = lines_of("kills.py", "--runs", name, "--every", args.every)
        return row(f"kills: {name}", one["kills"], one["failed"], f"{one['operations']} operations", began)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one_run, names))


def measure(args: argparse.Namespace) -> list[Row]:
    began, rows = time.monotonic(), []
    for one in lines_of("slopes.py", "--steps", args.steps, "--calls", args.calls):
        failed = [f"{one['files']} more files are open"] * (one["files"] > 0)
        failed += [f"grows by {one['kb_per_1000']} KB"] * (one["kb_per_1000"] > MOST_GROWTH)
        more = f"{one['kb_per_1000']:+} KB per 1,000, {one['mb'][0]} to {one['mb'][1]} MB, {one['files']:+} open files"
        what = {"training": "memory: training steps", "predicting": "memory: pipeline calls"}[one["measured"]]
        rows.append(row(what, one["done"], failed, more, began))
    return rows


def audit(args: argparse.Namespace) -> list[Row]:
    began, rows = time.monotonic(), []
    for one in lines_of("audits.py"):
        failed = [f"{event['event']} {event['what']} in {' < '.join(event['stack'][:4])}" for event in one["found"]]
        more = "; ".join(f"{count} × {reason}" for reason, count in sorted(one["reasons"].items()))
        rows.append(row(f"audit: {one['run']}", sum(one["reasons"].values()) + len(failed), failed, more, began))
    return rows


PARTS = {"inputs": fuzz, "memory": measure, "audit": audit, "kills": kill}
MOST_GROWTH = 1000  # KB per 1,000 steps or calls


def record(part: str, args: argparse.Namespace) -> int:
    """Do a part, write its file, and return how many of what it tried failed."""
    rows = PARTS[part](args)
    if part in ("inputs", "kills"):
        total = {key: sum(one[key] for one in rows) for key in ("tried", "failed", "seconds")}
        rows.append({**rows[0], "what": f"all {part}", "more": None, **total})
    print(write_result(f"soak_{part}", TITLES[part], rows, NOTES[part], results_dir=args.results_dir))
    return sum(one["failed"] for one in rows)


def main() -> int:
    args = parse()
    with ThreadPoolExecutor(2) as pool:  # one core for the fuzzer, one for what is measured
        quick = [pool.submit(record, part, args) for part in args.parts if part != "kills"]
    failed = sum(done.result() for done in quick)
    failed += record("kills", args) if "kills" in args.parts else 0  # on both
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
