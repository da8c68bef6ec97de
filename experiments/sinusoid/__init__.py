"""Few-shot sinusoid regression: the paper's section 5.1, Figures 2 and 3, and appendix C.

One model of each kind is trained, and then adapted with each K of --num_shots. Every method is
evaluated on the same test functions, on an even grid of inputs.
"""

from __future__ import annotations

from typing import Any

from ..core.stages import Experiment
from . import figure, user_points
from .config import ADAPTED, METHODS, PRESETS, Config, make_network
from .evaluation import evaluate
from .stages import make_stages


def adapt_to_points(run: Any, support: str, predict_at: str, adapt_steps: int) -> None:
    """Adapts the trained model to a user's points; see `user_points`."""
    name = next((m for m in ADAPTED if m in run.states), None)
    if name is None:
        raise user_points.PointsError("the run trained no MAML model (--methods) to adapt.")
    config = run.settings
    network, params = make_network(config), run.states[name].best_params
    user_points.adapt_to_points(
        network, params, config.inner_lr, adapt_steps, support, predict_at, run.workdir
    )


def cpu_devices(config: Config, num_members: int, cores: int) -> int:
    """A device for each of as many cores as divide the members, or two to halve the tasks.

    A device without work is a thread more, which costs more than it brings; and with fewer tasks
    each, the all-reduce of every meta-step (0.1 of 0.25 ms) outweighs what another device computes.
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
    modes={"adapt": adapt_to_points},
    mode_flags={
        "adapt": (
            ("support", "", "With --mode=adapt: CSV file with columns x,y to adapt to."),
            ("predict_at", "", "With --mode=adapt: CSV file with a column x; default a grid."),
            ("adapt_steps", 10, "With --mode=adapt: gradient steps."),
        )
    },
    cpu_threads=1,
    cpu_devices=cpu_devices,
)

__all__ = ["EXPERIMENT", "METHODS", "PRESETS", "Config", "make_network"]
