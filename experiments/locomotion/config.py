"""Settings of locomotion, its environment, and the robot without a task."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from maml_jax.networks import Policy
from maml_jax.reinforcement import Environment, Estimation
from maml_jax.reinforcement.robots import (
    BACKENDS,
    CONTACTS,
    FAMILIES,
    STANDARD,
    TASKS,
    Family,
    Solver,
)
from maml_jax.types import LossFn

from .. import meta_rl
from ..core.config import ConfigError, option

PHYSICS = ("paper", *(f"brax_{backend}" for backend in BACKENDS))
SOLVER = ("solver_iterations", "line_search_iterations")


class _Paper(NamedTuple):
    """Settings that differ between tasks in the original runs, from the published checkpoints."""

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
    """Settings of a run; defaults are the original code's, some of which depend on the task."""

    task: str = option("cheetah_direction", "Robot and kind of goal.", choices=TASKS)
    physics: str = option(
        "paper",
        "Physics engine. paper: MuJoCo's dynamics at the original time step, by mjx. brax_...: "
        "Brax's environments on one of its back ends. Returns of the two are not comparable.",
        choices=PHYSICS,
    )
    estimators: str = option(
        "maml_jax",
        "Source of advantages, action distribution and clipped loss: this library, or "
        "brax.training, which needs --policy=mlp.",
        choices=("maml_jax", "brax"),
    )
    horizon: int = option(200, "Time steps of an episode.", minimum=1)
    num_tasks: int = option(40, "Tasks of a meta-step.", minimum=1)
    meta_steps: int | None = option(  # type: ignore[assignment]
        None, "Meta-steps of each method. Default: the original run's.", minimum=1
    )
    num_episodes: int | None = option(  # type: ignore[assignment]
        None, "Episodes of a task and gradient step. Default: the original run's.", minimum=1
    )
    max_kl: float | None = option(  # type: ignore[assignment]
        None,
        "TRPO's bound on the mean KL divergence, nats. Default: the original run's.",
        above=0,
        sweep=True,
    )
    later_rate: float | None = option(  # type: ignore[assignment]
        None,
        "Evaluation: step size of gradient steps beyond --inner_steps, as a multiple of the inner "
        "step size. Default: the original run's.",
        above=0,
        internal=True,
    )
    solver_iterations: int = option(
        STANDARD.iterations,
        "Largest number of Newton steps of the paper's physics.",
        minimum=1,
        internal=True,
    )
    line_search_iterations: int = option(
        STANDARD.ls_iterations,
        "Largest number of line-search steps of each Newton step.",
        minimum=1,
        internal=True,
    )
    contacts: str = option(
        STANDARD.contacts,
        "Parts that touch the ground in the paper's physics: all, or fewer, as in Brax's models.",
        choices=CONTACTS,
        internal=True,
    )
    eval_episodes: int = option(
        20, "Evaluation: episodes of a task and gradient step.", minimum=1, internal=True
    )
    eval_updates: int = option(3, "Evaluation: gradient steps.", minimum=1, internal=True)
    steps_per_call: int = option(1, "Meta-steps of one dispatch.", minimum=1, internal=True)

    def __post_init__(self):
        for name, value in PAPER.get(self.task, PAPER[TASKS[0]])._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.estimators == "brax" and self.policy != "mlp":
            raise ConfigError(
                f"--estimators=brax needs --policy=mlp; received --policy={self.policy}."
            )

    def _usual(self, *names: str) -> bool:
        """Whether some fields have their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return all(getattr(self, name) == defaults[name] for name in names)

    @property
    def family(self) -> Family:
        """The robot and its goal."""
        return FAMILIES[self.task]

    @property
    def kind_of_physics(self) -> str:
        """The physics by its name in the library."""
        return self.physics.split("_")[0]

    @property
    def world(self) -> dict[str, Any]:
        """Keyword arguments of the library's `make_physics` and `locomotion`."""
        if self.kind_of_physics == "brax":
            return {"physics": "brax", "backend": self.physics.split("_")[1]}
        solver = (self.solver_iterations, self.line_search_iterations, self.contacts)
        return {"physics": "paper", "solver": Solver(*solver)}

    @property
    def departures(self) -> str:
        """Added to the setting's name in results: these returns are not comparable with others."""
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
        """Settings of the advantage estimation."""
        ours = super().estimation
        if self.estimators == "maml_jax":
            return ours
        return ours._replace(advantages=_library().brax_advantages)

    def outer_loss(self, policy: Policy) -> LossFn:
        """The loss of the outer step."""
        if self.estimators == "brax" and self.meta_update == "ppo":
            return _library().brax_ppo_loss(policy, self.clip)
        return super().outer_loss(policy)

    def for_policy(self, env: Environment) -> Environment:
        """The environment with the policy's observations and actions."""
        env = super().for_policy(env)
        return env if self.estimators == "maml_jax" else _library().squashed(env)

    def make_policy(self, env: Environment) -> Policy:
        """Makes the policy for an environment."""
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
        "curvature_episodes": 5,
    },
}


def _library() -> Any:
    """Imports the module that needs Brax and MuJoCo; raises a ConfigError without them."""
    try:
        from maml_jax.reinforcement import locomotion
    except ImportError as error:
        raise ConfigError(str(error)) from None
    return locomotion


@functools.cache
def _environment(task: str, horizon: int, world: tuple[tuple[str, Any], ...]) -> Environment:
    # Evaluated even during tracing: the cached environment outlives the program.
    with jax.ensure_compile_time_eval():
        return _library().locomotion(task, horizon=horizon, **dict(world))


def make_environment(config: Config) -> Environment:
    """Makes the environment of a configuration; equal settings share one object."""
    return _environment(config.task, config.horizon, tuple(config.world.items()))


def make_physics(config: Config) -> Any:
    """Makes the robot of a configuration, without a task."""
    return _library().make_physics(config.family.robot, **config.world)


def setting(config: Config) -> str:
    """The setting's name in results: returns with different names are not comparable."""
    _, _, backend = config.physics.partition("_")
    physics = f", Brax {backend}" if backend else ""
    estimators = "" if config.estimators == "maml_jax" else ", Brax's estimators"
    return f"{config.task.replace('_', ' ')}{physics}{estimators}{config.departures}"
