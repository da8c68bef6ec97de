"""Locomotion: half-cheetah and ant, the paper's section 5.3 and its Figure 5.

    python -m experiments.locomotion --workdir=DIR --task=cheetah_direction     the paper's settings
    python -m experiments.locomotion --workdir=DIR --preset=quick                 small, for a CPU
    python -m experiments.locomotion --workdir=DIR --task=cheetah_velocity --physics=brax
    python -m experiments.locomotion --workdir=DIR --mode=render     films of the policies of a run

A robot is to run at a speed, or in a direction, that it is not told; adaptation finds out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from experiments import films, meta_rl
from experiments.core import plotting
from experiments.core.command import main
from experiments.core.config import ConfigError, option
from experiments.core.plotting import plt
from experiments.core.results import METHOD_TITLES
from experiments.meta_rl.sheet import draw_returns, draw_training
from maml_jax.networks import Policy
from maml_jax.reinforcement import Environment, Estimation, Trajectories
from maml_jax.reinforcement.objectives import SurrogateFn

SUMMARY = "half-cheetah and ant at unknown speeds and in unknown directions (MAML paper, 5.3)"
TASKS = ("cheetah_direction", "cheetah_velocity", "ant_direction", "ant_velocity")
PHYSICS = ("paper", "brax")
BACKENDS = ("spring", "generalized", "positional", "mjx")
SOLVER = ("solver_iterations", "line_search_iterations")


class _Paper(NamedTuple):
    """What differs between the tasks in the original runs: of the checkpoints that were judged."""

    meta_steps: int
    num_episodes: int
    max_kl: float
    later_rate: float


PAPER = {
    "cheetah_direction": _Paper(100, 20, 0.02, 0.5),
    "cheetah_velocity": _Paper(475, 10, 0.01, 0.5),
    "ant_direction": _Paper(575, 40, 0.01, 0.01),
    "ant_velocity": _Paper(375, 20, 0.01, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Config(meta_rl.Config):
    """Settings of a run; defaults are the original code's, some of them by task."""

    task: str = option("cheetah_direction", "What is to be learned.", choices=TASKS)
    physics: str = option(
        "paper",
        "MuJoCo's dynamics at the original time step, by mjx; or Brax's own environments. Their "
        "returns are not comparable.",
        choices=PHYSICS,
    )
    backend: str = option("spring", "Back end of Brax's environments.", choices=BACKENDS)
    solver_iterations: int = option(4, "Newton steps of the paper's physics, at most.", minimum=1)
    line_search_iterations: int = option(8, "Of each Newton step, at most.", minimum=1)
    contacts: str = option(
        "all",
        "What touches the ground in the paper's physics: all geometry, or as in Brax's models.",
        choices=("all", "feet"),
    )
    estimators: str = option(
        "maml_jax",
        "Advantages, action distribution and clipped loss: ours, or those of brax.training (for "
        "which --policy must be mlp).",
        choices=("maml_jax", "brax"),
    )
    horizon: int = option(200, "Time steps of an episode.", minimum=1)
    num_tasks: int = option(40, "Tasks of a meta-iteration.", minimum=1)
    meta_steps: int | None = option(  # type: ignore[assignment]
        None, "Meta-iterations of each method; default that of the task.", minimum=1
    )
    num_episodes: int | None = option(  # type: ignore[assignment]
        None, "Episodes of a task and gradient step; default that of the task.", minimum=1
    )
    max_kl: float | None = option(  # type: ignore[assignment]
        None, "TRPO's bound on the mean KL divergence, nats; default that of the task.", above=0
    )
    later_rate: float | None = option(  # type: ignore[assignment]
        None,
        "Step size of updates after the first one in evaluation, as a multiple; default that of "
        "the task.",
        above=0,
    )
    validation_tasks: int = option(20, "Tasks to choose the model by.", minimum=1)
    eval_episodes: int = option(20, "Episodes of a task and update in evaluation.", minimum=1)
    eval_updates: int = option(3, "Gradient updates of the evaluation.", minimum=1)
    steps_per_call: int = option(1, "Meta-iterations of one dispatch.", minimum=1)

    def __post_init__(self):
        for name, value in PAPER.get(self.task, PAPER[TASKS[0]])._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        self._check_physics()
        if self.estimators == "brax" and self.policy != "mlp":
            raise ConfigError(
                f"--estimators=brax needs --policy=mlp; received --policy={self.policy}."
            )

    def _check_physics(self) -> None:
        """No flag of one physics with the other, where it would do nothing."""
        of = {"brax": ("backend",), "paper": (*SOLVER, "contacts")}
        for physics, names in of.items():
            for name in names:
                if self.physics != physics and not self._usual(name):
                    raise ConfigError(
                        f"--{name} belongs to --physics={physics}; received "
                        f"--{name}={getattr(self, name)} with --physics={self.physics}."
                    )

    def _usual(self, *names: str) -> bool:
        """Whether fields have their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return all(getattr(self, name) == defaults[name] for name in names)

    @property
    def departures(self) -> str:
        """What results add to the setting's name, so that others are not compared with it."""
        added = ""
        if not self._usual(*SOLVER):
            added += f", solver {self.solver_iterations} x {self.line_search_iterations}"
        if not self._usual("contacts"):
            added += f", {self.contacts} touch the ground"
        if not self._usual("horizon"):
            added += f", horizon {self.horizon}"
        return added + super().departures

    @property
    def estimation(self) -> Estimation:
        """How advantages are estimated."""
        ours = super().estimation
        if self.estimators == "maml_jax":
            return ours
        return ours._replace(advantages=_library().brax_advantages)

    @property
    def outer_loss(self) -> SurrogateFn | None:
        """Of the clipped outer step, if not ours."""
        return None if self.estimators == "maml_jax" else _library().brax_ppo_loss(self.clip)

    def seen_by_policy(self, env: Environment) -> Environment:
        """The environment with what the policy is to see, and to act on."""
        seen = super().seen_by_policy(env)
        return seen if self.estimators == "maml_jax" else _library().squashed(seen)

    def make_policy(self, env: Environment) -> Policy:
        """The policy for an environment."""
        if self.estimators == "maml_jax":
            return super().make_policy(env)
        sizes = env.num_observations, env.num_actions
        return _library().tanh_gaussian_policy(*sizes, self.hidden_sizes)


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "methods": ("maml", "pretrained", "random", "oracle"),
        "meta_steps": 30,
        "num_tasks": 20,
        "num_episodes": 10,
        "product_episodes": 5,
    },
}


def _library() -> Any:
    """The module that needs Brax and MuJoCo."""
    try:
        from maml_jax.reinforcement import locomotion
    except ImportError as error:
        raise ConfigError(str(error)) from None
    return locomotion


def make_environment(config: Config) -> Environment:
    """The environment of a configuration."""
    return _library().locomotion(config.task, config.physics, horizon=config.horizon,
                                 **_world(config))  # fmt: skip


def make_physics(config: Config) -> Any:
    """The robot of a configuration, without its task."""
    robot = "ant" if config.task.startswith("ant") else "half_cheetah"
    return _library().make_physics(robot, config.physics, **_world(config))


def _world(config: Config) -> dict[str, Any]:
    solver = _library().Solver(
        config.solver_iterations, config.line_search_iterations, config.contacts
    )
    return {"solver": solver, "backend": config.backend}


def setting(config: Config) -> str:
    """As results name it: what may not be compared has different names."""
    physics = "" if config.physics == "paper" else f", Brax {config.backend}"
    estimators = "" if config.estimators == "maml_jax" else ", Brax's estimators"
    return f"{config.task.replace('_', ' ')}{physics}{estimators}{config.departures}"


# Where the root's forward velocity stands in an observation, by robot and physics.
SPEED_AT = {
    ("cheetah", "paper"): 8,
    ("cheetah", "brax"): 8,
    ("ant", "paper"): 15,
    ("ant", "brax"): 13,
}


def watch(config: Config) -> meta_rl.Watch:
    """Mean forward speed of every test task's episodes, after each update."""
    column = SPEED_AT[config.task.split("_")[0], config.physics]

    def speeds(t: Trajectories) -> dict[str, jax.Array]:
        speed, alive = t.observations[..., column], t.alive
        total = jnp.sum(jnp.where(alive, speed, 0.0), axis=(2, 3))
        return {"speeds": total / jnp.maximum(jnp.sum(alive, axis=(2, 3)), 1)}

    return meta_rl.Watch(config.eval_tasks, config.eval_episodes, speeds)


def locomotion_sheet(
    path: Path,
    run: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: list[dict[str, Any]],
) -> None:
    """The paper's Figure 5, training, and what the robot does before and after one update."""
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
        draw_returns(axes[0], run)
        draw_training(axes[1], metrics)
        _draw_speeds(axes[2], run, arrays)
        plotting.save(figure, path)


def _draw_speeds(ax: Axes, run: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Mean forward speed of each test task against its goal, before and after one update."""
    goals = arrays["tasks"][:, 0]
    method = next(m for m in ("maml", "first_order", *run["config"]["methods"])
                  if m in run["config"]["methods"])  # fmt: skip
    speeds = arrays[f"speeds/{method}"]  # [T, U + 1]
    by_speed = run["config"]["task"].endswith("velocity")
    for update, color in ((0, "#999999"), (1, "#0072B2")):
        if update < speeds.shape[1]:
            label = "before" if update == 0 else "after 1 update"
            spread = 0 if by_speed else 0.08 * (update - 0.5)
            ax.plot(goals + spread, speeds[:, update], "o", ms=4, color=color, label=label)
    if by_speed:
        ends = [goals.min(), goals.max()]
        ax.plot(ends, ends, "--", color="black", lw=0.8, label="as desired")
        ax.set_xlabel("desired speed (m/s)")
    else:
        ax.axhline(0.0, color="black", lw=0.8)
        ax.set_xticks([-1, 1], ["backward", "forward"])
        ax.set_xlabel("desired direction")
    ax.set_ylabel("forward speed (m/s)")
    ax.set_title(f"{METHOD_TITLES.get(method, method)}: speeds of the test tasks")
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.legend()


EXPERIMENT = meta_rl.meta_rl_experiment(
    "locomotion",
    SUMMARY,
    Config,
    PRESETS,
    make_environment,
    setting,
    watch,
    locomotion_sheet,
    modes={"render": films.render},
    mode_flags={"render": films.FLAGS},
    small_kernels=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
