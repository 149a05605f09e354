"""Kill runs at every one of their file operations, run them again, and compare with an unbroken run.

python tests/soak/kills.py --runs gate corpus
python tests/soak/kills.py --every 7

One process imports everything and forks a child for each try, which takes the time of the run alone. A line of JSON
for each run tells {run, operations, kills, failed}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from hub_server import LocalHub, local_hub  # noqa: E402
from kill_points import KillPoints  # noqa: E402
from kill_runs import RUNS, contents, difference, fresh, without_passing  # noqa: E402

WAYS_OUT = ("--resume_from_checkpoint latest", "--overwrite_output_dir")  # that a refusal may name
LONGEST = 120  # seconds of a child


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN", help=", ".join(RUNS)
    )
    parser.add_argument("--every", type=int, default=1, help="kill at each n-th operation only")
    parser.add_argument("--first", type=int, default=1, help="number of the first operation to kill at")
    parser.add_argument("--list", action="store_true", help="only tell the names of the runs")
    parser.add_argument("--verbose", action="store_true", help="tell each kill")
    return parser.parse_args()


class Child:
    """A forked child's end: its exit code (below 0: the signal) and what it said."""

    def __init__(self, work: Path, action: Callable[[], Any], points: KillPoints | None = None) -> None:
        said = work.with_name("said")
        said.write_bytes(b"")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(action, points, said)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.said = said.read_text(errors="replace")

    @property
    def last(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"ended with {self.code}"


def _be_child(action: Callable[[], Any], points: KillPoints | None, said: Path) -> None:
    """Do the action in this forked child, and end it."""
    code = 0
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(LONGEST)
    try:
        if points:
            points.install()
        action()
        if points:
            points.finish()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 3
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Campaign:
    """The tries of one run."""

    def __init__(self, name: str, home: Path, hub: LocalHub) -> None:
        self.name, self.run, self.hub = name, RUNS[name], hub
        self.pristine, self.work, self.log = home / "pristine", home / "work", home / "operations"
        shutil.rmtree(home, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._must_end_well(lambda: self.run.prepare(self.work))
        os.rename(self.work, self.pristine)
        self.begin()
        self._must_end_well(lambda: self.run.run(self.work, []), KillPoints(self.work, self.log))
        self.operations = self.log.read_text().splitlines()
        self.expected = self.result()
        self.unkilled = 0  # runs that had fewer operations than the one that was counted

    def _must_end_well(self, action: Callable[[], Any], points: KillPoints | None = None) -> None:
        if (child := Child(self.work, action, points)).code != 0:
            raise RuntimeError(f"{self.name}: {child.said[-3000:]}")

    def begin(self) -> None:
        fresh(self.pristine, self.work)
        self.hub.repos.clear()

    def result(self) -> dict[str, bytes]:
        """Return what the folder and the Hub hold."""
        pushed = {
            f"hub/{kind}/{name}/{path}": content
            for (kind, name), repo in self.hub.repos.items()
            for path, content in repo.at("main")[1].items()
        }
        return contents(self.work) | {name: without_passing(name, content) for name, content in pushed.items()}

    def kill(self, at: int, half: bool) -> str:
        """Kill at an operation, run again, and return what is wrong then, or ""."""
        self.begin()
        points = KillPoints(self.work, self.log.with_name("killed"), at, half)
        killed = Child(self.work, lambda: self.run.run(self.work, []), points)
        if killed.code == 0:  # what is younger than a moment is checked again, so that not every run has as many
            self.unkilled += 1
            return difference(self.result(), self.expected)
        if killed.code != -signal.SIGKILL:
            return f"was not killed, but ended with {killed.code}: {killed.last}"
        more: list[str] = []
        for _ in range(3):
            again = Child(self.work, partial(self.run.run, self.work, more))
            if again.code == 0:
                return difference(self.result(), self.expected)
            way = next((way for way in WAYS_OUT if way in again.said and way.split()[0] not in more), None)
            if way is None or "Traceback" in again.said:
                break
            more = way.split()
        return f"ended with {again.code}: {again.last}"


def campaign(name: str, home: Path, hub: LocalHub, every: int, first: int, verbose: bool) -> dict[str, Any]:
    """Kill one run at its operations, and return what came out."""
    tries = Campaign(name, home, hub)
    failed, kills = [], 0
    for at in range(first, len(tries.operations) + 1, every):
        what = tries.operations[at - 1].split(" ", 1)[1]
        for half in (False, True) if what.startswith("write ") else (False,):
            kills += 1
            wrong = tries.kill(at, half)
            told = f"{'half-way through' if half else 'before'} {at} ({what}): {wrong}"
            if wrong:
                failed.append(told)
            if verbose:
                print(told, file=sys.stderr, flush=True)
    return {"run": name, "operations": len(tries.operations), "kills": kills - tries.unkilled, "failed": failed}


def import_all() -> None:
    """Import once what the children need, on one thread: threads do not survive a fork."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    import run_ner  # noqa: F401
    import run_re  # noqa: F401
    from dataset_scripts import _publish  # noqa: F401
    from modeling_more.knowledge import BM25Retriever, ImageRetriever  # noqa: F401


def main() -> None:
    args = parse()
    if args.list:
        return print(json.dumps(list(RUNS)))
    home = Path(tempfile.mkdtemp(prefix="more-kills-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        with local_hub(home / "hf") as hub:
            # the server is a thread of this process, which forks only while it waits
            quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            os.environ.update(hub.env | quiet)
            import_all()
            for name in args.runs:
                found = campaign(name, home / "run", hub, args.every, args.first, args.verbose)
                print(json.dumps(found), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
