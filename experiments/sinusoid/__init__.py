"""Few-shot sinusoid regression: the paper's section 5.1, Figures 2 and 3, and appendix C.

A run trains each method once and adapts it with each K of --num_shots. All methods are evaluated on
the same test functions, on an even grid of inputs.
"""

from __future__ import annotations

from typing import Any

from maml_jax.regression.sinusoid import INPUTS

from ..core.config import ConfigError
from ..core.stages import Blueprint, Experiment
from . import figure, user_points
from .config import ADAPTED, METHODS, PRESETS, Config, make_network
from .evaluation import evaluate
from .stages import make_problem, make_stages


def adapt_to_points(
    run: Any, support: str, predict_at: str, adapt_steps: int, inner_lr: float | None = None
) -> None:
    """Adapts a run's MAML model to a user's points; see `user_points.adapt_to_points`.

    `inner_lr` is by default that of the run.
    """
    name = next((m for m in ADAPTED if m in run.params), None)
    if name is None:
        raise user_points.PointsError("the run trained no MAML model (--methods) to adapt.")
    config = run.settings
    network, params = make_network(config), run.params[name]
    inner_lr = config.inner_lr if inner_lr is None else inner_lr
    user_points.adapt_to_points(
        network, params, inner_lr, adapt_steps, support, predict_at, run.workdir
    )


def make_blueprint(config: Config, method: str, classes: tuple[str, ...]) -> Blueprint:
    """The blueprint of a stage's parameters: network and inner loop.

    Args:
        config: of the run.
        method: name of the stage.
        classes: unused; sinusoids have no classes.

    Raises:
        ConfigError: no such method.
    """
    del classes
    if method not in METHODS:
        raise ConfigError(f"the method must be one of {', '.join(METHODS)}; received {method!r}.")
    problem, adapts = make_problem(config, method), method in ADAPTED
    description = {
        "network": {
            "kind": "fully connected",
            "hidden_sizes": list(config.hidden_sizes),
            "activation": "relu",
            "num_inputs": 3 if method == "oracle" else 1,
            "num_outputs": 1,
        },
        "inputs": {"values": "x; for the oracle x, amplitude, phase", "x": list(INPUTS)},
    }
    return Blueprint(
        make_network(config, 3 if method == "oracle" else 1),
        description,
        problem=None if method == "oracle" else problem,
        inner_lr=config.inner_lr if adapts else None,
        num_inner_steps=config.inner_steps if adapts else None,
    )


def cpu_devices(config: Config, num_members: int, cores: int) -> int:
    """The number of devices of a CPU: a group for each core that the members divide evenly.

    A group has two devices if the cores allow that and its members' tasks can be halved. Further
    devices do not pay: an idle one costs a thread, and with fewer tasks for each, the all-reduce
    of a meta-step (0.1 of 0.25 ms) takes longer than the saved computation.
    """
    groups = max(count for count in range(1, cores + 1) if num_members % count == 0)
    return groups * (2 if config.num_tasks % 2 == 0 and 2 * groups <= cores else 1)


EXPERIMENT = Experiment(
    name="sinusoid",
    summary="few-shot regression of sinusoids (MAML paper, section 5.1)",
    config=Config,
    presets=PRESETS,
    stages=make_stages,
    evaluate=evaluate,
    figure=figure.draw,
    blueprint=make_blueprint,
    modes={"adapt": adapt_to_points},
    mode_flags={
        "adapt": (
            ("support", "", "CSV file with columns x,y to adapt to."),
            (
                "predict_at",
                "",
                "CSV file with a column x to predict at. Default: an even grid.",
            ),
            ("adapt_steps", 10, "Gradient steps."),
        )
    },
    mode_settings={"adapt": ("inner_lr",)},
    cpu_threads=1,
    cpu_devices=cpu_devices,
)

__all__ = ["EXPERIMENT", "METHODS", "PRESETS", "Config", "make_network"]
