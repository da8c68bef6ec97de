"""Lost output ends no command and is never written to another file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = r"""
import os, sys
from experiments.core import streams

streams.protect("the run goes on.")
with open(sys.argv[1], "w") as results:
    print("5.0 \u00b1 0.1 \u2026 \u4e09 \udcff", flush=True)
    for _ in range(20_000):
        print("a line of progress")
    print("a warning \u00b1", file=sys.stderr)
    os.write(2, b"from a library in C ")
    results.write("all of it")
    sys.stdout.flush()
try:
    streams.check_output()
except OSError:
    sys.exit(1)
"""


def shell(tmp_path, redirected, **variables):
    """Runs the script under a shell's redirections; returns its file and its output."""
    path, script = tmp_path / "results", tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    line = f"{sys.executable} {script} {path} {redirected}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        env=environment,
        timeout=PATIENCE_S,
    )
    assert path.read_text() == "all of it"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize(
    "redirected", [">&-", ">&- 2>&-", ">&- 2>&- <&-", "2>&-", "| head -1", "2>&1 | head -1"]
)
def test_closed_streams(tmp_path, redirected):
    assert shell(tmp_path, redirected).returncode == 0


def test_lost_output_is_reported_once(tmp_path):
    done = shell(tmp_path, "| head -1")
    expected = b"note: standard output cannot be written (Broken pipe); the run goes on."
    assert done.stderr.count(expected) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirected", ["> /dev/full", "> /dev/full 2>&1", "2> /dev/full"])
def test_full_streams(tmp_path, redirected):
    """A command whose only result is its output can check that it was written."""
    done = shell(tmp_path, redirected)
    assert done.returncode == (1 if redirected.startswith(">") else 0)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"5.0 +/- 0.1 ... \\u4e09 \\udcff\n"),
        ("latin-1", b"5.0 \xb1 0.1 ... \\u4e09 \\udcff\n"),
        ("utf-8", "5.0 \u00b1 0.1 \u2026 \u4e09 \\udcff\n".encode()),
    ],
)
def test_characters_that_an_encoding_lacks(tmp_path, encoding, shown):
    done = shell(tmp_path, "", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.startswith(shown)


def test_the_c_locale(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert shell(tmp_path, "", **plain).stdout.startswith(b"5.0 +/- 0.1")
