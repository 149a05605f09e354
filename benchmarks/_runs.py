"""What benchmarks that train share: run every system and seed that has no finished run yet, and average its scores."""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import ROOT

Run = dict[str, Any]  # of all_results.json


def parser(description: str, name: str, systems: Sequence[str], chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The options of such a benchmark; `chosen` are the systems that run by default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="folder with the real data")
    made.add_argument("--systems", nargs="*", choices=list(systems), default=list(chosen))
    made.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    made.add_argument("--bf16", action="store_true", help="compute in bfloat16 (slow where the CPU can't)")
    made.add_argument("--work_dir", type=Path, default=ROOT / "out" / name, help="where the runs lie")
    return made


def run_missing(args: argparse.Namespace, command: Callable[[str, int, bool, str, Path], list[str]]) -> None:
    """Run `command(system, seed, bf16, data, folder)` where its folder holds no finished run."""
    for system in args.systems:
        for seed in args.seeds:
            folder = args.work_dir / f"{system}-{'bf16' if args.bf16 else 'float32'}" / f"seed-{seed}"
            if not (folder / "all_results.json").is_file():
                subprocess.run(command(system, seed, args.bf16, args.data, folder), check=True)


def finished(
    args: argparse.Namespace, systems: Sequence[str], row: Callable[[str, str, list[Run]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """`row(system, precision, runs)` of every system and precision that has finished runs in the work folder."""
    rows = []
    for system in systems:
        for precision in ("float32", "bf16"):
            files = sorted((args.work_dir / f"{system}-{precision}").glob("seed-*/all_results.json"))
            if files:
                rows.append(row(system, precision, [json.loads(file.read_text()) for file in files]))
    return rows


def command_of(script: str, args: argparse.Namespace, systems: Sequence[str]) -> str:
    """The command that makes all the runs which the work folder holds."""
    made = [system for system in systems if any(args.work_dir.glob(f"{system}-*/seed-*/all_results.json"))]
    seeds = {int(folder.name[5:]) for folder in args.work_dir.glob("*/seed-*")}
    return f"python benchmarks/{script} --systems {' '.join(made)} --seeds {' '.join(map(str, sorted(seeds)))}"


def mean(runs: Sequence[Run], key: str) -> str:
    """`82.73 ± 0.29` over the runs that have this score; a dash without any."""
    values = [run[key] for run in runs if key in run]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
