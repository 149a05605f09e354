"""The page: what it shows of a post, what it refuses, and both in a real browser, with the keyboard alone too.

The browser is Debian's chromium (`apt install chromium`) by Playwright; where it, Playwright or Gradio is missing, its
tests are skipped.
"""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from PIL import Image

from modeling_more import page
from modeling_more.page_reading import ALONE, AS_TRAINED, MAX_CHARACTERS, MAX_IMAGE_BYTES, PageReader
from ner_runs import ROOT, posts, told
from saved_models import train_models

TEXT = "Ada Lovelace met Rivera in Oslo !"
SCRIPT = "<script>alert('post')</script><img src=x onerror=\"alert('image')\"> ${alert(1)} {{value}}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed: .[space]")
needs_browser = pytest.mark.skipif(
    find_spec("playwright") is None or CHROMIUM is None, reason="Playwright or Debian's chromium is not installed"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_encoder, towers):
    files = train_models(tmp_path_factory.mktemp("page"), tiny_encoder("bert"), towers["clip"])
    hostile = [{"id": "https://example.org/Ada?a=1&b=2", "title": SCRIPT, "text": f"Ada Lovelace {SCRIPT} ."}]
    hostile += [{"id": "x", "title": "Rivera", "text": "Rivera is a river ."}]
    files["hostile"] = str(Path(files["wiki"]).with_name("hostile.jsonl"))
    Path(files["hostile"]).write_text("".join(json.dumps(row) + "\n" for row in hostile))
    return files


@pytest.fixture(scope="module")
def reader(saved):
    return PageReader.open([saved["text"], saved["mixture"]], saved["relations"], {"other": [saved["hostile"]]})


@pytest.fixture(scope="module")
def picture(saved):
    return (Path(saved["images"]) / "1.png").read_bytes()


def test_a_post_gives_entities_opinions_weights_and_evidence(reader, picture):
    shown = reader.read("mixture", AS_TRAINED, TEXT, picture)
    assert "".join(piece for piece, _ in shown.marked) == TEXT
    entities = [(piece, kind) for piece, kind in shown.marked if kind]
    assert entities and all(kind in ("PER", "LOC") for _, kind in entities)
    assert [TEXT[int(a) : int(b)] for a, b in (value.split() for _, value in shown.choices)] == [
        e for e, _ in entities
    ]
    for name in ("mixture", "text", "image"):
        assert f'<th scope="col">{name}</th>' in shown.opinions
    assert shown.weights.count('class="more-bar"') == 2
    # two articles by text, two by picture, and these with their pictures
    assert shown.evidence.count('class="more-card"') == 4
    assert shown.evidence.count('<img src="data:image/jpeg;base64,') == 2
    assert "<a " not in shown.evidence  # ids of this corpus lead nowhere

    alone = reader.read("mixture", AS_TRAINED, TEXT, None)
    assert alone.evidence.count('class="more-card"') == 2 and "the post has none" in alone.evidence
    nothing = reader.read("text", ALONE, TEXT, None)
    assert 'class="more-card"' not in nothing.evidence and nothing.weights == ""


def test_the_relation_of_two_chosen_entities(reader):
    found = reader.relate(AS_TRAINED, TEXT, None, "0 12", "17 23")
    assert "Ada Lovelace → Rivera" in found and 'class="more-card"' in found
    with pytest.raises(ValueError, match="two different entities"):
        reader.relate(AS_TRAINED, TEXT, None, "0 12", "0 12")
    with pytest.raises(ValueError, match="The post has changed"):
        reader.relate(AS_TRAINED, "Ada", None, "0 12", "17 23")
    for head in (None, "", "0", "-1 4", "0 x", "0 1 2", "١ ٢", "1" * 30 + " 4"):
        with pytest.raises(ValueError, match="Choose two entities first"):
            reader.relate(AS_TRAINED, TEXT, None, head, "17 23")


def image_bytes(size, kind="PNG"):
    stream = io.BytesIO()
    Image.new("1", size).save(stream, kind)
    return stream.getvalue()


def test_bad_input_is_one_sentence(reader, picture):
    def refused(text=TEXT, image=None, model="text", corpus=AS_TRAINED):
        with pytest.raises(ValueError) as raised:
            reader.read(model, corpus, text, image)
        assert "\n" not in str(raised.value) and str(ROOT) not in str(raised.value)
        return str(raised.value)

    assert refused(" \n") == refused("") == "Type a post first."
    assert f"at most {MAX_CHARACTERS}" in refused("a" * (MAX_CHARACTERS + 1))
    assert "surrogate" in refused("Ada \ud800")
    assert "no such model" in refused(model="../../etc") and "no such corpus" in refused(corpus="/etc/passwd")
    assert "it is cut off" in refused(image=picture[:-60]) and "not an image" in refused(image=b"no picture")
    assert "at most 25 million pixels" in refused(image=image_bytes((6000, 6000)))
    assert "at most 10 MB" in refused(image=b"x" * (MAX_IMAGE_BYTES + 1))
    # a format that starts another program where Pillow opens it
    assert "not an image" in refused(image=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def test_what_others_wrote_is_text(reader):
    shown = reader.read("text", "other", f"Somebody met Ada Lovelace {SCRIPT}", None)
    found = shown.opinions + shown.evidence
    assert "&lt;script&gt;" in shown.evidence and "<script" not in found and "<img src=x" not in found
    link = '<a href="https://example.org/Ada?a=1&amp;b=2" target="_blank" rel="noopener noreferrer nofollow">'
    assert link in shown.evidence


def test_wrong_options_are_one_sentence(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MODELS", raising=False)
    with pytest.raises(SystemExit):
        page.main([])
    assert "name a model" in capsys.readouterr().err
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "Ada", "image": "../wiki.jsonl"}\n')
    if find_spec("gradio") is None:
        return
    assert "no such folder" in told(capsys, ["--model", str(tmp_path / "none")], page.main)
    assert "finds relations: name it by --relation_model" in told(capsys, ["--model", saved["relations"]], page.main)
    swapped = ["--model", saved["text"], "--relation_model", saved["text"]]
    assert "finds entities: name it by --model" in told(capsys, swapped, page.main)
    damaged = shutil.copytree(saved["text"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    assert "damaged" in told(capsys, ["--model", str(damaged)], page.main)
    wrong = ["--model", saved["text"], "--knowledge", "a=x.jsonl", "a=y.jsonl"]
    assert "gives a twice" in told(capsys, wrong, page.main)
    assert "nothing.jsonl" in told(capsys, ["--model", saved["text"], "--knowledge", "nothing.jsonl"], page.main)
    assert "leads out of" in told(capsys, ["--model", saved["text"], "--examples", str(examples)], page.main)


def test_without_gradio_the_sentence_says_what_to_install(saved, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('No module named gradio', name='gradio')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "spaces" / "more" / "app.py"), "--model", saved["text"]],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        'error: the page needs gradio, which is not installed here: pip install "modeling-more[space]"' in done.stderr
    )


# --- the server


@pytest.fixture(scope="module")
def running(saved, tmp_path_factory):
    """The address and the process of a page that runs as a user runs it."""
    if find_spec("gradio") is None:
        pytest.skip("Gradio is not installed: .[space]")
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(Path(saved["images"]) / "2.png", folder / "2.png")
    (folder / "examples.jsonl").write_text(json.dumps({"text": "Rivera met in Lindau !", "image": "2.png"}) + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w+")
    told = {"RELATION_MODEL": saved["relations"], "KNOWLEDGE": f"other={saved['hostile']}"}  # as a Space is told
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "spaces" / "more" / "app.py"), "--model", saved["mixture"], saved["text"],
         "--examples", str(folder / "examples.jsonl"), "--port", str(port)],
        env={**os.environ, **told, "GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"},
        cwd=folder, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(address, timeout=60)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield address, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


@pytest.fixture
def server(running):
    return running[0]


def asked(server, data, name="read"):
    """The last event that the page answers to a call, and what it holds."""
    made = httpx.post(f"{server}/gradio_api/call/{name}", json={"data": data}, timeout=120)
    if made.status_code != 200:
        return str(made.status_code), made.text
    with httpx.stream("GET", f"{server}/gradio_api/call/{name}/{made.json()['event_id']}", timeout=120) as answer:
        lines = [line for line in answer.iter_lines() if line.strip()]
    event, content = lines[-2:]
    return event.removeprefix("event: "), content.removeprefix("data: ")


@needs_gradio
def test_no_path_and_no_address_of_a_client_is_opened(server, saved, picture):
    uploaded = httpx.post(f"{server}/gradio_api/upload", files={"files": ("a.png", picture)}, timeout=60).json()[0]
    file = {"meta": {"_type": "gradio.FileData"}}
    event, found = asked(server, ["text", AS_TRAINED, TEXT, {"path": uploaded, **file}])
    assert event == "complete" and "Lovelace" in found
    here = str(Path(saved["images"]) / "1.png")  # a picture of this machine that nobody uploaded
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    for value in (
        {"path": here, **file}, {"path": here}, {"path": here, "is_stream": True, **file},
        {"path": "/etc/passwd", **file},
        {"path": f"{Path(uploaded).parent}/../../../../../../../..{here}", **file}, {"path": address, **file},
        {"path": address, "is_stream": True, **file}, {"url": address, **file}, {"path": "file:///etc/passwd", **file},
        {"url": "data:image/png;base64,AAAA", **file}, here, 3, [here],
    ):  # fmt: skip
        event, found = asked(server, ["text", AS_TRAINED, TEXT, value])
        assert event in ("error", "422"), (value, event, found)
        assert "root:" not in found and "Traceback" not in found
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    for name in (here, "/etc/passwd", str(ROOT / "pyproject.toml"), f"{uploaded}/../../../../../../../../etc/passwd"):
        assert httpx.get(f"{server}/gradio_api/file={name}", timeout=60).status_code in (403, 404)


@needs_gradio
def test_requests_that_are_too_large_are_refused(server):
    for length in (True, False):  # told beforehand, or in chunks

        def body():
            yield from [b" " * 100_000] * 10

        try:
            answer = httpx.post(
                f"{server}/gradio_api/call/read", content=b" " * 1_000_000 if length else body(), timeout=60
            )
            assert answer.status_code >= 400
            assert not length or answer.status_code == 413
        except httpx.TransportError:  # it hung up while the rest was on its way
            pass
    files = {"files": ("a.png", b"x" * (MAX_IMAGE_BYTES + 300_000))}
    try:
        assert httpx.post(f"{server}/gradio_api/upload", files=files, timeout=60).status_code == 413
    except httpx.TransportError:
        pass
    event, found = asked(server, ["text", AS_TRAINED, "a" * (MAX_CHARACTERS + 1), None])
    assert event == "error" and f"at most {MAX_CHARACTERS}" in found
    assert asked(server, ["text", AS_TRAINED, TEXT, None])[0] == "complete"


@needs_gradio
def test_more_people_than_the_queue_holds_are_answered_or_told_to_wait(running):
    import page_load

    address, process = running
    row = asyncio.run(page_load.load(f"{address}/gradio_api", process, "mixture", users=60, seconds=3))
    assert row["other errors"] == 0 and row["answers"] > 0 and row["refused by the queue"] > 0


# --- the browser


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, server):
    """The page in a new tab; a dialog (of a script that ran), or an error in a script, fails the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(120_000)
    problems = []
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(server)
    tab.wait_for_selector("#post textarea")
    yield tab
    tab.close()
    assert problems == []


@needs_browser
def test_a_post_is_read_in_the_browser(opened, saved):
    opened.fill("#post textarea", TEXT)
    opened.set_input_files("#picture input[type=file]", str(Path(saved["images"]) / "1.png"))
    opened.wait_for_selector("#picture img")
    opened.click("#read")
    opened.wait_for_selector("#evidence .more-card")
    assert "Ada" in opened.inner_text("#marked") and "PER" in opened.inner_text("#marked")
    assert opened.locator("#opinions tbody tr").count() >= 1
    assert opened.locator("#weights .more-bar").count() == 2
    assert opened.locator("#evidence .more-card").count() == 4
    assert (
        opened.evaluate("[...document.querySelectorAll('#evidence img')].map(one => one.naturalWidth > 0)")
        == [True] * 2
    )


@needs_browser
def test_the_relation_is_asked_in_the_browser(opened, reader):
    texts = (" ".join(post["tokens"]) for post in posts(33))
    text = next(one for one in texts if len(reader.read("text", AS_TRAINED, one, None).choices) >= 2)
    opened.fill("#post textarea", text)
    opened.click("#model input")
    opened.get_by_role("option", name="text", exact=True).click()
    opened.click("#read")
    opened.wait_for_selector("#evidence .more-card")
    opened.click("#relate")
    opened.wait_for_selector("#relation table")
    assert "→" in opened.inner_text("#relation")
    opened.fill("#post textarea", "Ada")
    opened.click("#relate")
    opened.get_by_text("The post has changed").wait_for()


@needs_browser
def test_an_example_is_taken_over(opened):
    opened.click("#example-0")
    opened.wait_for_selector("#picture img")
    assert opened.input_value("#post textarea") == "Rivera met in Lindau !"
    opened.click("#read")
    opened.wait_for_selector("#evidence .more-card img")


@needs_browser
def test_scripts_in_posts_and_corpora_are_shown_as_text(opened):
    opened.fill("#post textarea", f"Somebody met Ada Lovelace {SCRIPT}")
    opened.click("#corpus input")
    opened.get_by_role("option", name="other").click()
    opened.click("#read")
    opened.wait_for_selector("#evidence .more-card")
    shown = re.sub(r" (PER|LOC)(\n|$)", "", opened.inner_text("#marked"))  # without labels
    assert "".join(SCRIPT.split()) in "".join(shown.split())
    assert "<script>alert('post')</script>" in opened.inner_text("#evidence")
    assert "${alert(1)} {{value}}" in opened.inner_text("#evidence")
    assert opened.locator("#marked script, #evidence script, #marked img, #evidence img").count() == 0
    assert opened.get_attribute("#evidence a", "href") == "https://example.org/Ada?a=1&b=2"


@needs_browser
def test_a_broken_picture_is_told(opened, tmp_path, picture):
    broken = tmp_path / "broken<b>.png"
    broken.write_bytes(picture[: len(picture) // 2])
    opened.fill("#post textarea", TEXT)
    opened.set_input_files("#picture input[type=file]", str(broken))
    opened.wait_for_selector("#picture img")
    opened.click("#read")
    opened.get_by_text("The picture can't be read, it is cut off").wait_for()
    assert opened.locator("#evidence .more-card").count() == 0


@needs_browser
def test_the_keyboard_is_enough(opened):
    assert opened.evaluate("document.activeElement.tagName") == "TEXTAREA"  # one types at once
    opened.keyboard.type(TEXT)
    for _ in range(12):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.id") == "read":
            break
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#evidence .more-card")
    opened.focus("#post textarea")
    opened.keyboard.press("Control+A")
    opened.keyboard.type("Charles Babbage met in London !")
    opened.keyboard.press("Shift+Enter")
    opened.get_by_text("Charles Babbage is a person .").first.wait_for()


@needs_browser
def test_a_narrow_screen_needs_no_scrolling_sideways(opened):
    opened.set_viewport_size({"width": 400, "height": 800})
    opened.fill("#post textarea", f"{TEXT} {'x' * 300}")
    opened.keyboard.press("Shift+Enter")
    opened.wait_for_selector("#evidence .more-card")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
