"""Take the pictures of the page, docs/page-1280.png and docs/page-400.png, in a real browser.

python docs/shoot_page.py --model out/demo/seed-1/entities/mixture --examples EXAMPLES.jsonl

It opens the page with these options, takes over an example and lets it be read. It needs Playwright and Debian's
package chromium.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (1280, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=int, default=0, help="number of the example that is shown, from 0 on")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    args, options = parser.parse_known_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = [sys.executable, str(ROOT / "spaces" / "more" / "app.py"), *options, "--port", str(port)]
    process = subprocess.Popen(page)
    try:
        address = f"http://127.0.0.1:{port}"
        while not _answers(address):
            if process.poll() is not None:
                raise SystemExit("error: the page ended before it was ready")
            time.sleep(0.5)
        for width in WIDTHS:
            shoot(address, width, args.example, args.output_dir / f"page-{width}.png")
    finally:
        process.terminate()
        process.wait()


def shoot(address: str, width: int, example: int, path: Path) -> None:
    """Take a picture of the whole page with what an example shows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.set_default_timeout(120_000)
        tab.goto(address)
        tab.click(f"#example-{example}")
        tab.wait_for_selector("#picture img")
        tab.click("#read")
        tab.wait_for_selector("#evidence .more-card")
        if tab.locator("#relate").count() and tab.input_value("#tail input"):
            tab.click("#relate")
            tab.wait_for_selector("#relation table")
        tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        tab.wait_for_timeout(1000)  # pictures are decoded, the highlight of the button fades
        tab.screenshot(path=path, full_page=True)
        browser.close()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
