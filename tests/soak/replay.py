"""Try inputs on the fuzzer's targets without the fuzzer: those that once failed, or seeds with random changes.

python tests/soak/replay.py tests/soak/crashes/*
python tests/soak/replay.py --changed 200

Each target has a process of its own, since some failures end it. A line of JSON for each: {input, what}, what being
null where all is well.
"""

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
os.environ["NUMBA_BOUNDSCHECK"] = "1"  # before numba is imported: reading beyond an array is an error then

SLOW = 60  # seconds of one input at most: the machine may be busy


def target_of(file: Path) -> str:
    """Return the target that a kept input is for."""
    return file.name.rpartition("-")[0].replace("_", " ")


def changed(seeds: Iterable[bytes], words: tuple[str, ...], count: int, seed: int = 0) -> Iterator[bytes]:
    """Return seeds, and `count` of them with one to four random changes."""
    rng, pool = random.Random(seed), list(seeds)
    yield from pool
    tokens = [word.encode("utf-8", "surrogatepass") for word in words]
    for _ in range(count):
        data = bytearray(rng.choice(pool))
        for _ in range(rng.randint(1, 4)):
            at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
            match rng.randrange(6):
                case 0:
                    data[at:end] = b""
                case 1:
                    data[at:at] = data[at : min(end, at + 64)]
                case 2 if tokens:
                    data[at:at] = rng.choice(tokens)
                case 3:
                    data[at:at] = rng.choice(pool)[: rng.randint(1, 64)]
                case _:
                    data[at : at + 1] = bytes([rng.randrange(256)])
        yield bytes(data)


def in_child(name: str, inputs: Iterable[tuple[str, bytes]]) -> list[tuple[str, str | None]]:
    """Judge inputs of a target in a forked child; the one at which the child dies ends it."""
    from fuzz_targets import TARGETS
    from fuzz_verdict import judge

    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(told)
        with tempfile.TemporaryDirectory() as folder, os.fdopen(tell, "w", buffering=1) as stream:
            judge(TARGETS[name], b"", Path(folder))  # what is built and compiled once is no input's time
            for label, data in inputs:
                signal.alarm(SLOW)
                stream.write(json.dumps([label, "the process dies of it, or it takes too long"]) + "\n")
                crash = judge(TARGETS[name], data, Path(folder))
                stream.write(json.dumps([label, crash and crash.what]) + "\n")
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as stream:
        found = dict(json.loads(line) for line in stream if line.endswith("\n"))
    os.waitpid(pid, 0)
    return list(found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="inputs, whose names begin with their target's")
    parser.add_argument("--changed", type=int, default=0, help="changed seeds of each target")
    args = parser.parse_args()
    from fuzz_targets import TARGETS

    logging.disable(logging.CRITICAL)
    for file in args.files:  # each by itself: one may end the process
        for label, what in in_child(target_of(file), [(file.name, file.read_bytes())]):
            print(json.dumps({"input": label, "what": what}), flush=True)
    for name, target in TARGETS.items() if args.changed else ():
        some = changed(target.seeds().values(), target.words, args.changed)
        found = in_child(name, ((f"{name} {number}", data) for number, data in enumerate(some)))
        wrong = [f"{label}: {what}" for label, what in found if what]
        print(json.dumps({"input": name, "what": "; ".join(wrong[:3]) or None, "tried": len(found)}), flush=True)


if __name__ == "__main__":
    main()
