"""The command line of an experiment: flags, exit codes, messages for what can go wrong."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging

from maml_jax import NonFiniteError

from .. import show_invocation
from . import compilation, distributed, places, runner, settings_flags, streams, usage
from . import config as config_lib
from .checkpoints import CheckpointError
from .config import ConfigError
from .distributed import FirstProcessError
from .files import FileError
from .identity import MAX_SEED, RunError
from .loop import StoppedError
from .members import make_members
from .process import (
    check_devices,
    devices_given,
    lay_out_cpu,
    limit_memory,
    num_cores,
)
from .stages import Experiment


def main(experiment: Experiment) -> None:
    """Runs an experiment as the command line says, and exits with its code."""
    show_invocation()
    streams.protect("the run continues, and its directory receives all results.")
    _define_flags(experiment)
    try:
        settings_flags.check_names(experiment.config, sys.argv[1:])
    except ConfigError as error:
        usage.fail(str(error))
    groups = (usage.RUN, usage.SETTINGS, *map(_mode_group, experiment.mode_flags), usage.HOSTS)
    usage.run(lambda argv: sys.exit(_command(experiment, argv)), groups)


def _mode_group(mode: str) -> str:
    return f"--mode={mode}"


def _define_flags(experiment: Experiment) -> None:
    module = usage.RUN
    presets, modes = ", ".join(experiment.presets), ", ".join(("train", *experiment.modes))

    def text(name: str, default: Any, help_text: str, shown: bool = True) -> None:
        flags.DEFINE_string(name, default, help_text if shown else usage.HIDDEN, module_name=module)

    text(
        "workdir",
        None,
        "Directory of the run, created if missing. A run that stopped there resumes. Required.",
    )
    text("preset", next(iter(experiment.presets)), f"Settings to start from: {presets}.")
    flags.DEFINE_integer(
        "seed", 0, "Seed of the run, from 0 to 999999.", 0, MAX_SEED, module_name=module
    )
    flags.DEFINE_integer(
        "num_seeds",
        1,
        "Number of seeds that train together: seed, seed + 1, ... Each is a member of the run.",
        1,
        module_name=module,
    )
    text("mode", "train", f"What to do: {modes}.", shown=bool(experiment.modes))
    flags.DEFINE_float(
        "checkpoint_every_s",
        30.0,
        "Seconds between checkpoints. Does not change results.",
        0.0,
        module_name=module,
    )
    text(
        "data_dir",
        None,
        "Folder of data sets. Default: $MAML_JAX_DATA, else maml_jax in the user's data folder.",
        shown=experiment.reads_data,
    )
    text(
        "cache_dir",
        None,
        "Folder of decoded images and compiled programs. Default: $MAML_JAX_CACHE, else maml_jax "
        "in the user's cache folder.",
    )
    flags.DEFINE_integer(
        "cpu_devices",
        None,
        "Number of JAX devices that a CPU is split into; the default depends on the experiment. "
        "A resumed run needs the same number to reproduce every bit.",
        1,
        1_024,
        module_name=module,
    )
    text("profile", None, "Directory for a trace of three dispatches of each stage.")
    text(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs for the next start; off keeps none. Default: "
        f"$JAX_COMPILATION_CACHE_DIR, else a folder of at most {compilation.MAX_BYTES >> 20} MiB "
        "in --cache_dir.",
    )
    _define_process_flags(usage.HOSTS)
    for mode, mode_flags in experiment.mode_flags.items():
        for name, default, help_text in mode_flags:
            define = flags.DEFINE_integer if isinstance(default, int) else flags.DEFINE_string
            define(name, default, help_text, module_name=_mode_group(mode))
    settings_flags.define_flags(experiment.config, experiment.presets, usage.SETTINGS)


def _define_process_flags(module: str) -> None:
    """Flags for runs of several processes, on one host or many."""
    flags.DEFINE_boolean(
        "distributed",
        False,
        "Run as one of several processes that SLURM, Open MPI, Kubernetes or Cloud TPU started.",
        module_name=module,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, where no cluster gives it; implies --distributed.",
        module_name=module,
    )
    for name, text in (
        ("num_processes", "Number of processes of the run, where no cluster gives it."),
        ("process_id", "Index of this process, from 0, where no cluster gives it."),
    ):
        flags.DEFINE_integer(name, None, text, 0, 1_000_000, module_name=module)
    flags.DEFINE_integer(
        "heartbeat_timeout_s",
        60,
        "Seconds without a heartbeat after which a process of the run counts as lost.",
        1,
        1_000_000,
        module_name=module,
    )


def _command(experiment: Experiment, argv: list[str]) -> int:
    values = flags.FLAGS
    if not values["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.ERROR)
    given = devices_given()
    if values.cpu_devices and given not in (None, values.cpu_devices):
        usage.fail(
            f"--cpu_devices={values.cpu_devices}, but XLA_FLAGS or JAX_NUM_CPU_DEVICES sets "
            f"{given}."
        )
    try:
        code = _ending(functools.partial(_carry_out, experiment, argv, values))
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()  # leave at once: the other processes may wait for this one
        distributed.leave(1)
    if code not in (0, *STOPPED) and jax.distributed.is_initialized():
        distributed.leave(code)
    return code


STOPPED = (130, 143)  # exit codes after Ctrl-C and SIGTERM: all processes saved and end together


def _ending(action: Callable[[], None]) -> int:
    """Runs an action, prints a sentence for an expected error, and returns the exit code."""
    try:
        action()
    except StoppedError as stop:
        print(f"\n{stop}; saved. The same command continues from there.", file=sys.stderr)
        return 128 + stop.signal_number
    except (
        *(ConfigError, RunError, FileError, CheckpointError, NonFiniteError),
        FirstProcessError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint.", file=sys.stderr)
        if jax.distributed.is_initialized():
            distributed.leave(130)  # the others received no signal
        return 130
    except jax.errors.JaxRuntimeError as error:
        if not _out_of_memory(error):
            distributed.leave_if_lost(error)
            raise
        print(f"error: {MEMORY} ({_first_line(error)})", file=sys.stderr)
        return 3
    except (MemoryError, OverflowError) as error:  # host memory; sizes beyond int32
        print(f"error: {MEMORY} ({_first_line(error)})", file=sys.stderr)
        return 3
    except OSError as error:
        where = error.filename or flags.FLAGS.workdir
        print(f"error: {error.strerror or error}: {where}", file=sys.stderr)
        return 2
    return 0


MEMORY = (
    "the device has not enough memory. Checkpoints are kept. To need less, use another --workdir "
    "with --meta_gradient=mixed, --set=task_batching=scan (or a small number of tasks), fewer "
    "--num_tasks or --num_episodes, or a smaller network, where the experiment has these flags; or "
    "use more devices: docs/scaling.md."
)


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _carry_out(experiment: Experiment, argv: list[str], values: flags.FlagValues) -> None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are --NAME=VALUE.")
    if not values.workdir:
        raise ConfigError("--workdir=DIR is required: the directory of the run.")
    settings_flags.check_finite_flags(values)
    workdir, profile = (
        values[name].value and places.expanded(values[name].value, f"--{name}")
        for name in ("workdir", "profile")
    )
    for kind, name in places.VARIABLES.items():
        if values[f"{kind}_dir"].value:
            flag = f"{kind}_dir"
            os.environ[name] = str(places.expanded(values[flag].value, f"--{flag}"))
    overrides, swept = settings_flags.overrides_from_flags(experiment.config, values)
    if values.mode in experiment.modes:  # they read the other settings of the run
        used = experiment.mode_settings.get(values.mode, ())
        for name in used:
            if name in swept:
                raise ConfigError(
                    f"--{name} takes one value with --mode={values.mode}; received "
                    f"{','.join(map(str, swept[name]))}."
                )
        overrides, swept = {name: overrides[name] for name in used if name in overrides}, None
        ignored = settings_flags.given_flags(experiment.config, values, used)
        if ignored:
            print(
                f"note: --mode={values.mode} uses the settings of the run; ignored: "
                f"{', '.join(ignored)}",
                file=sys.stderr,
            )
    settings = config_lib.build(experiment.config, experiment.presets, values.preset, overrides)
    num_members = len(make_members(settings, values.seed, values.num_seeds, swept))
    devices = values.cpu_devices
    if devices is None and experiment.cpu_devices is not None:
        devices = experiment.cpu_devices(settings, num_members, num_cores())
    lay_out_cpu(experiment.cpu_threads, devices, experiment.small_kernels)
    addressed = (values.coordinator, values.num_processes, values.process_id)
    together = values.distributed or any(value is not None for value in addressed)
    compilation.keep_compiled(values.compilation_cache, by_default=not together)
    if values.mode in experiment.modes:
        check_devices()
        limit_memory()
        arguments = {name: values[name].value for name, _, _ in experiment.mode_flags[values.mode]}
        run = runner.load_params(experiment, workdir)
        experiment.modes[values.mode](run, **arguments, **overrides)
        return
    if values.mode != "train":
        allowed = ", ".join(("train", *experiment.modes))
        raise ConfigError(f"--mode must be one of {allowed}; received {values.mode!r}.")
    if together:
        distributed.connect(*addressed, values.heartbeat_timeout_s)
    check_devices()
    limit_memory()
    with contextlib.ExitStack() as quiet:
        if not distributed.is_first():
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        runner.run(
            experiment,
            workdir,
            settings,
            preset=values.preset,
            seed=values.seed,
            num_seeds=values.num_seeds,
            swept=swept,
            checkpoint_every_s=values.checkpoint_every_s,
            profile=profile,
        )
