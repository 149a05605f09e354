"""What benchmarks that train share: run every system and seed that has no finished run yet, and average its scores."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import ROOT, commit

Run = dict[str, Any]  # of RESULTS
RESULTS = "all_results.json"  # a finished run has it
COMMITS = "commits.txt"  # of the code that made a run; several where it was interrupted and went on
PRECISIONS = ("float32", "bf16", "bf16-emulated")


def parser(description: str, name: str, systems: Sequence[str], chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The options of such a benchmark; `chosen` are the systems that run by default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="folder with the real data")
    made.add_argument("--systems", nargs="*", choices=list(systems), default=list(chosen))
    made.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    made.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="bf16-emulated: the arithmetic of bf16 hardware on a CPU without it (benchmarks/_bf16.py)",
    )
    made.add_argument("--work_dir", type=Path, default=ROOT / "out" / name, help="where the runs lie")
    return made


def run_missing(args: argparse.Namespace, command: Callable[[str, int, str, Path], list[str]]) -> None:
    """Run `command(system, seed, data, folder)`, a script and its options, where its folder holds no finished run.

    An interrupted run goes on after its last complete epoch.
    """
    for system in args.systems:
        for seed in args.seeds:
            folder = args.work_dir / f"{system}-{args.precision}" / f"seed-{seed}"
            if (folder / RESULTS).is_file():
                continue
            words = command(system, seed, args.data, folder)
            if args.precision != "float32":
                words += ["--bf16"]
            if args.precision == "bf16-emulated":
                words = [str(ROOT / "benchmarks" / "_bf16.py"), *words]
            made_by = [commit()]
            if (folder / "checkpoints").is_dir():
                words += ["--resume_from_checkpoint", "latest"]
                made_by = [*_commits(folder), *made_by]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COMMITS).write_text("\n".join(dict.fromkeys(made_by)) + "\n")
            # the environment this runs in may not be on PATH (`make test` calls its python by folder)
            subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *words], check=True)


def finished(
    args: argparse.Namespace, systems: Sequence[str], row: Callable[[str, str, list[Run]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """`row(system, precision, runs)` of every system and precision that has finished runs in the work folder."""
    rows = []
    for system in systems:
        for precision in PRECISIONS:
            folders = _finished(args, system, precision)
            if folders:
                rows.append(row(system, precision, [json.loads((one / RESULTS).read_text()) for one in folders]))
    return rows


def command_of(script: str, args: argparse.Namespace, systems: Sequence[str]) -> str:
    """The commands, one a precision, that make all the runs which the work folder holds."""
    commands = []
    for precision in PRECISIONS:
        made = {system: {one.name[5:] for one in _finished(args, system, precision)} for system in systems}
        names = [system for system in systems if made[system]]
        if names:
            seeds = sorted(set().union(*made.values()), key=int)
            commands.append(
                f"python benchmarks/{script} --precision {precision} --systems {' '.join(names)} "
                f"--seeds {' '.join(seeds)}"
            )
    return " && ".join(commands)


def commits_of(args: argparse.Namespace, systems: Sequence[str]) -> str:
    """The commits that made the finished runs of the work folder, each with its systems where there are several."""
    made: dict[str, list[str]] = {}
    for system in systems:
        for precision in PRECISIONS:
            for folder in _finished(args, system, precision):
                for name in _commits(folder):
                    made.setdefault(name, []).append(f"{system} {precision}")
    if len(made) == 1:
        return next(iter(made))
    return ", ".join(f"{name} ({', '.join(dict.fromkeys(runs))})" for name, runs in made.items())


def _finished(args: argparse.Namespace, system: str, precision: str) -> list[Path]:
    """The folders of the finished runs, one a seed."""
    return sorted(file.parent for file in args.work_dir.glob(f"{system}-{precision}/seed-*/{RESULTS}"))


def _commits(folder: Path) -> list[str]:
    file = folder / COMMITS
    return file.read_text().split() if file.is_file() else ["unknown"]


def mean(runs: Sequence[Run], key: str) -> str:
    """`82.73 ± 0.29` over the runs that have this score; a dash without any."""
    values = [run[key] for run in runs if key in run]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
