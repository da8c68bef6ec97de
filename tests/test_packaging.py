"""The wheel's packages, the command of a checkout, and steps of CI that need no network."""

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_has_every_package():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    packages = {
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for folder, name in (("maml_jax", "maml_jax"), ("experiments", "maml_jax_experiments"))
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(packages)


def test_a_checkout_runs_its_experiments_rather_than_installed_ones(tmp_path):
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    for package in (checkout / "experiments", installed / "maml_jax_experiments"):
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        main = f"def main():\n    print({package.parent.name!r}, __package__)\n"
        (package / "__main__.py").write_text(main)
    (checkout / "maml_jax").mkdir()
    (checkout / "maml_jax" / "__init__.py").touch()
    shutil.copy(ROOT / "maml_jax" / "__main__.py", checkout / "maml_jax")

    def run():
        return subprocess.run(
            [sys.executable, str(checkout / "maml_jax" / "__main__.py")],
            env={**os.environ, "PYTHONPATH": str(installed)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        ).stdout

    assert run() == "installed maml_jax_experiments\n"  # no setup.cfg: not a checkout
    (checkout / "setup.cfg").touch()
    assert run() == "checkout experiments\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="CI runs in bash")
@pytest.mark.parametrize(
    ("pythons", "newest"),
    [
        ({}, ""),
        ({"python3.12": 0}, "python3.12"),
        ({"python3.13": 127, "python3.12": 0}, "python3.12"),  # 127: a shim without interpreter
        ({"python3.13": 0, "python3.12": 127}, "python3.13"),
        ({"python3.13": 127, "python3.12": 127}, ""),
    ],
)
def test_ci_takes_the_newest_python_that_starts(tmp_path, pythons, newest):
    for name, code in pythons.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    script = (ROOT / ".ci" / "run").read_text()
    detection = re.search(r"^newest=.*?(?=^if )", script, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", f'{detection}\necho "$newest"'],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, f"{newest}\n"), done.stderr


@pytest.mark.parametrize(
    ("file", "build"),
    [(".ci/run", "pip wheel --no-deps"), ("Makefile", "'.[experiments]' equinox")],
)
def test_builds_in_the_checkout_start_afresh(file, build):
    """A folder `build` of an earlier build would bring deleted modules into the wheel."""
    before, _, _ = (ROOT / file).read_text().partition(build)
    assert re.search(r"^\t?@?rm -rf build\b", "\n".join(before.splitlines()[-5:]), re.MULTILINE)
