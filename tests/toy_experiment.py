"""A small experiment that compiles fast: points on a line, with data, validation and a warning."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.core.config import check_fields, option, without_swept
from experiments.core.results import make_row
from experiments.core.stages import Experiment, Outcome, Stage
from maml_jax import Problem, Task, algorithms, gradient_update
from maml_jax.mesh import replicate


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the toy."""

    inner_lr: float = option(0.1, "Inner step size.", above=0, sweep=True)
    meta_lr: float = option(0.1, "Meta step size.", above=0, sweep=True)
    num_tasks: int = option(2, "Tasks.", minimum=1)
    meta_steps: int = option(20, "Meta-steps.", minimum=1)
    steps_per_call: int = option(5, "Meta-steps of a dispatch.", minimum=1)
    validate_every: int = option(10, "Meta-steps between validations.", minimum=1, internal=True)
    one_by_one: bool = option(False, "Members in sequence.", internal=True)
    report_steps: int = option(1, "Gradient steps of the main row.", internal=True)

    def __post_init__(self):
        check_fields(self)


def loss(params, target):
    """Returns the squared distance, and the largest coordinate as a metric."""
    return jnp.sum((params["w"] - target) ** 2), {"largest": jnp.max(jnp.abs(params["w"]))}


def sample(params, key, centre, offset):
    """Draws a target near a centre that all members share, shifted by the member's offset."""
    del params
    target = centre + offset + jax.random.normal(key, (3,))
    return Task(target, target)


@functools.lru_cache(maxsize=1)
def score_fn(config):
    """Returns the negative loss after an inner step; compiled once for all members."""
    del config
    targets = jax.random.normal(jax.random.key(1_000_002), (4, 3))

    @jax.jit
    def score(params, rate):
        step = {"w": params["w"] * (1 - 2 * rate) + 2 * rate * targets}
        return -jnp.mean(jnp.sum((step["w"] - targets) ** 2, axis=1))

    return score


PROBLEM = Problem(lambda key: {"w": jax.random.normal(key, (3,))}, sample, loss, loss)
CENTRE = np.full((3,), 0.5, np.float32)
EVENTS: list[str] = []  # the runner's calls, in order


def make_stages(config: Config) -> list[Stage]:
    """Makes two stages: one that validates, with data, and one that does not."""
    learner = algorithms.maml(PROBLEM, config.inner_lr)
    update = gradient_update(learner.loss, optax.sgd(config.meta_lr))
    shared = {
        "init": PROBLEM.init,
        "sample": sample,
        "update": update,
        "num_tasks": config.num_tasks,
        "num_meta_steps": config.meta_steps,
        "steps_per_call": config.steps_per_call,
        "member_data": lambda key: (0.1 * jax.random.normal(jax.random.fold_in(key, 1), (3,)),),
        "one_by_one": config.one_by_one,
    }

    def place(mesh):
        EVENTS.append(f"data on {dict(mesh.shape)}")
        return (replicate(CENTRE, mesh),)

    validated = Stage(
        name="maml",
        **shared,
        data=place,
        score=lambda params: score_fn(without_swept(config))(params, config.inner_lr),
        score_name="return",
        validate_every=config.validate_every,
        shown=("loss", "query/largest"),
        check=lambda metrics: "far out" if metrics["query"]["largest"].max() > 1e3 else None,
        before_training=lambda mesh: EVENTS.append("before training"),
        prepare=lambda: EVENTS.append("prepare"),
    )
    plain = Stage(name="pretrained", **shared, data=lambda mesh: (replicate(CENTRE, mesh),))
    return [validated, plain]


def evaluate(config: Config, seed: int, selections) -> Outcome:
    """Measures distances from fixed points before and after a step."""
    del seed
    targets = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    rows = []
    for name, selection in selections.items():
        w = np.asarray(selection.best_params["w"])
        assert w.shape == (3,)
        for steps in (0, 1, 2):
            far = (1 - 2 * config.inner_lr) ** steps * (w - targets)
            row = make_row(name, "line", steps, "mse", np.sum(far**2, axis=1))
            rows.append({**row, "best_step": int(selection.best_step)})
    return Outcome(rows, {"targets": targets})


def draw(path, results, arrays, metrics) -> None:
    """Writes the inputs of the figure to a file."""
    path.write_text(f"{len(results['rows'])} {sorted(arrays)} {len(metrics)}")


EXPERIMENT = Experiment(
    name="toy",
    summary="points on a line",
    config=Config,
    presets={"paper": {}},
    stages=make_stages,
    evaluate=evaluate,
    figure=draw,
)
