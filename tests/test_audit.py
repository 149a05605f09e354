"""The audit sees what it is to see: each kind of event, in a process and in those that it starts."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import audit
import pytest

CODE = {
    "pickle.loads": "import pickle; pickle.loads(pickle.dumps(1))",
    "pickle.load": "import pickle, io; pickle.load(io.BytesIO(pickle.dumps([1])))",
    "pickle.Unpickler": "import pickle, io; pickle.Unpickler(io.BytesIO(pickle.dumps([1]))).load()",
    "pickle.find_class": "import pickle; pickle.loads(pickle.dumps(set))",
    "exec": "exec('a = 1')",
    "compile": "eval('1 + 1')",
    "subprocess.Popen": "import subprocess; subprocess.run(['true'])",
    "os.system": "import os; os.system('true')",
    "socket.getaddrinfo": "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass",
    "socket.connect": "import socket\ntry: socket.socket().connect(('127.0.0.1', 9))\nexcept OSError: pass",
    "ctypes.dlopen": "import ctypes; ctypes.CDLL('libc.so.6')",
    "open": "import sys; open(sys.argv[1]).read()",
}


@pytest.mark.parametrize("event", CODE)
def test_each_kind_of_event_is_seen(event, tmp_path):
    script, secret = tmp_path / "script.py", tmp_path / "private" / "secret.txt"
    script.write_text(CODE[event])
    secret.parent.mkdir()
    secret.write_text("mine")
    seen = audit.watched([sys.executable, str(script), str(secret)], canaries=[secret.parent])
    assert seen.done.returncode == 0, seen.done.stderr
    ours = [one for one in seen.found if any("script.py" in line for line in one["stack"])]
    assert event in {one["event"] for one in ours}


def test_code_of_strangers_is_seen_and_that_of_installed_modules_is_not(tmp_path):
    (tmp_path / "stranger.py").write_text("X = 1\n")
    seen = audit.watched([sys.executable, "-c", "import json, dataclasses, numpy, stranger"], cwd=tmp_path)
    assert seen.done.returncode == 0, seen.done.stderr
    told = {one["what"].split(":")[0] for one in seen.found if one["event"] == "exec"}
    assert told == {"<string>", str(tmp_path / "stranger.py")}  # that of -c is a stranger's, too
    assert seen.reasons[audit.IMPORTING] > 0


def test_processes_that_a_process_starts_are_watched_and_addresses_can_be_allowed(tmp_path):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps([1]))
    inner = "import pickle; pickle.load(open('file.pkl', 'rb'))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    seen = audit.watched([sys.executable, "-c", outer], cwd=tmp_path)
    assert seen.done.returncode == 0, seen.done.stderr
    assert {"subprocess.Popen", "open", "pickle.load"} <= {one["event"] for one in seen.found}
    connect = CODE["socket.connect"]
    allowed = audit.watched([sys.executable, "-c", connect], hosts=["127.0.0.1:9"])
    assert "socket.connect" not in {one["event"] for one in allowed.found}
    assert allowed.reasons[audit.CONNECTING] == 1


def test_a_list_is_written_by_the_command(tmp_path):
    command = [sys.executable, str(Path(audit.__file__)), str(tmp_path / "found.json")]
    done = subprocess.run([*command, sys.executable, "-c", "exec('1')"], capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == 1 and {one["event"] for one in found} == {"compile", "exec"}
