"""An experiment's command line where internal settings are given, too, for tests of commands.

python tests/tiny_run.py NAME '{"validate_every": 10}' --workdir=DIR [--FLAG=VALUE ...]
"""

import dataclasses
import importlib
import json
import sys

from experiments.core.command import main


def experiment_with(name, settings):
    """The experiment, whose one preset has these settings."""
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    preset = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return dataclasses.replace(experiment, presets={"tiny": preset})


if __name__ == "__main__":
    name, settings = sys.argv[1:3]
    del sys.argv[1:3]
    main(experiment_with(name, json.loads(settings)))
