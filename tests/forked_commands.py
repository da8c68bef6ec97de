"""Runs commands in forks of a process that has imported what they need, which takes seconds."""

import multiprocessing
import os
import sys
from typing import NamedTuple

from conftest import PATIENCE_S

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.core.command", "experiments.sinusoid"])


class Ended(NamedTuple):
    """A command that ended: its exit status and what it wrote to both streams."""

    returncode: int
    text: str


def sinusoid_command(directory, *arguments):
    """Runs `python -m experiments.sinusoid ARGUMENTS` in `directory`."""
    return command("sinusoid", directory, *arguments)


def command(name, directory, *arguments):
    """Runs `python -m experiments.NAME ARGUMENTS` in `directory`."""
    output = directory / "output.txt"
    process = FORKS.Process(target=_run, args=(name, directory, output, arguments))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode is not None, "the command hangs"
    return Ended(process.exitcode, output.read_text())


def _run(name, directory, output, arguments):
    os.chdir(directory)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"experiments.{name}", *arguments]
    from experiments.core import command
    from experiments.core.stages import experiment_named

    command.main(experiment_named(name))
