"""The examples in docstrings run as they stand, and every public function and class has one."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import maml_jax

MODULES = ["maml_jax"] + [
    info.name for info in pkgutil.walk_packages(maml_jax.__path__, prefix="maml_jax.")
]
PACKAGES = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]
# Public names of packages that need no example, each with a reason.
WITHOUT_EXAMPLE: dict[str, str] = {}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    # No names of the module: an example imports what it uses, as a user has to.
    tests = doctest.DocTestFinder().find(module, globs={})
    written = [
        line
        for line in Path(module.__file__).read_text().splitlines()
        if ">>> " in line.strip()[:4]
    ]
    assert sum(len(test.examples) for test in tests) == len(written), "some example does not run"
    runner, report = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS), []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def public_without_example(name):
    """Names of functions and classes that a package offers and that lack an example."""
    package = importlib.import_module(name)
    offered = getattr(package, "__all__", None)
    return {
        f"{name}.{public}"
        for public, value in vars(package).items()
        if callable(value)
        and not public.startswith("_")
        and (public in offered if offered else value.__module__.startswith("maml_jax"))
        and ">>> " not in (value.__doc__ or "")
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_public_callables_have_an_example(name):
    assert sorted(public_without_example(name) - set(WITHOUT_EXAMPLE)) == []


def test_exceptions_are_needed():
    assert set(WITHOUT_EXAMPLE) <= set().union(*map(public_without_example, PACKAGES))
