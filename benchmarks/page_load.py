"""Fifty people at once on the page for a minute: answers, refusals of the queue, errors, and the server's memory.

python benchmarks/page_load.py --model out/demo/seed-1/entities/mixture

The page runs in a process of its own on 127.0.0.1; each user sends a post, waits for what is shown, and sends the next
one at once. A user that the full queue refuses waits a moment. Every other user has a picture.
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from _common import ROOT, write_result

WORDS = "rain Rivera Lindau joins today Northfield singer harbour United lake Druzor town picture Oslo".split()
REFUSED_WAIT = 0.5  # seconds until a refused user tries again
NOTE = (
    "{users} users in a loop against 127.0.0.1, on the machine that also serves, with a model of the demo: {model}. "
    "Each sends a post of 4 to 40 words, every other one with a picture of 256 × 256 pixels, and the next one as soon "
    "as the answer is there. Refused: told by the full queue to come back (HTTP 503), which bounds the memory. Other "
    "errors: any other status, or an answer that is none. Memory is the resident set of the server, read twice a "
    "second: before the first of these posts, and at its highest in the first and in the last third."
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, and write the result; exits 1 where there were other errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or id of a model for entities")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--results_dir", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "spaces" / "more" / "app.py"), "--model", args.model, "--port", str(port)],
            env={**os.environ, "GRADIO_TEMP_DIR": folder, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        try:
            row = asyncio.run(load(f"http://127.0.0.1:{port}/gradio_api", process, name, args.users, args.seconds))
        finally:
            process.terminate()
            process.wait()
    print(json.dumps(row, indent=1))
    note = NOTE.format(users=args.users, model=name)
    write_result("page_load", "The page under load", [row], note, results_dir=args.results_dir)
    if row["other errors"]:
        raise SystemExit(1)
    return row


async def load(api: str, process: subprocess.Popen[bytes], model: str, users: int, seconds: float) -> dict[str, Any]:
    """Return the row of the table; `model` is the name that the page shows."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        await _ready(client, api, process)
        uploads = {"files": ("a.png", _picture(), "image/png")}
        (place,) = (await client.post(f"{api}/upload", files=uploads)).json()
        if await one_post(client, api, model, "Rivera joins", None) != "answers":  # the first one loads what is lazy
            raise SystemExit("error: the page does not answer")
        counts: Counter[str] = Counter()
        waits: list[float] = []
        memory: list[tuple[float, float]] = []
        before, began = _resident_mb(process.pid), time.perf_counter()

        async def user(number: int) -> None:
            rng = np.random.default_rng(number)
            while time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                text = " ".join(rng.choice(WORDS, int(rng.integers(4, 41))))
                outcome = await one_post(client, api, model, text, place if number % 2 else None)
                counts[outcome] += 1
                if outcome == "answers":
                    waits.append(time.perf_counter() - sent)
                elif outcome == "refused":
                    await asyncio.sleep(REFUSED_WAIT)

        async def watch() -> None:
            while True:
                memory.append((time.perf_counter() - began, _resident_mb(process.pid)))
                await asyncio.sleep(0.5)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*map(user, range(users)))
        lasted = time.perf_counter() - began
        watcher.cancel()
    third = lasted / 3
    return {
        "users": users,
        "seconds": round(lasted, 1),
        "answers": counts["answers"],
        "refused by the queue": counts["refused"],
        "other errors": counts["errors"],
        "answers a second": round(counts["answers"] / lasted, 1),
        "median wait (s)": round(statistics.median(waits), 2),
        "longest wait (s)": round(max(waits), 2),
        "MB before": round(before),
        "MB first third": round(max(mb for at, mb in memory if at <= third)),
        "MB last third": round(max(mb for at, mb in memory if at >= 2 * third)),
    }


async def one_post(client: httpx.AsyncClient, api: str, model: str, text: str, place: str | None) -> str:
    """Return what became of a post: "answers", "refused" or "errors"."""
    picture = {"path": place, "meta": {"_type": "gradio.FileData"}} if place else None
    body = {"data": [model, "as trained", text, picture]}
    try:
        made = await client.post(f"{api}/call/read", json=body)
        if made.status_code == 503:
            return "refused"
        made.raise_for_status()
        answer = await client.get(f"{api}/call/read/{made.json()['event_id']}")
        answer.raise_for_status()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "errors"
    if "event: complete" in answer.text:
        return "answers"
    print(answer.text[-300:], file=sys.stderr)
    return "errors"


async def _ready(client: httpx.AsyncClient, api: str, process: subprocess.Popen[bytes]) -> None:
    for _ in itertools.count():
        if process.poll() is not None:
            raise SystemExit("error: the page ended before it was ready")
        try:
            await client.get(f"{api}/info")
            return
        except httpx.TransportError:
            await asyncio.sleep(0.5)


def _picture() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return -1


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
