"""Meta-iterations of 2D navigation, phase by phase.

On a CPU each core is one JAX device with one thread, as the experiments run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.harness import Row, measure_loop, rotating, sample_times, summarize, variants
from maml_jax import MetaUpdate, Task, init, make_train_fn, task_mesh
from maml_jax.kernels.preferences import preferred
from maml_jax.mesh import TASK_AXIS, on_mesh, split_tasks
from maml_jax.networks import gaussian_policy
from maml_jax.reinforcement import (
    Environment,
    ReinforcementProblem,
    navigation,
    reinforcement_problem,
    rollout,
    to_samples,
    trpo,
)
from maml_jax.types import Array

TASKS, EPISODES, INNER_LR = 20, 20, 0.1
SUBSAMPLE = 5  # episodes of a task for the curvature
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(TASK_AXIS)


class Case(NamedTuple):
    """What is timed.

    Attributes:
        name: of it.
        problem: with its environment and policy.
        num_tasks: T.
    """

    name: str
    problem: ReinforcementProblem
    num_tasks: int

    @property
    def num_steps(self) -> int:
        """Of the environment in one rollout of a meta-batch."""
        return self.num_tasks * self.problem.num_episodes * self.problem.env.horizon


def make_case(name: str, env: Environment, num_tasks: int, **policy: Any) -> Case:
    """A family of tasks as the paper has it; options are those of the policy."""
    made = gaussian_policy(env.num_observations, env.num_actions, **policy)
    problem = reinforcement_problem(env, made, num_episodes=EPISODES, inner_lr=INNER_LR)
    return Case(name, problem, num_tasks)


def paper_case() -> Case:
    """Navigation with the paper's policy."""
    return make_case("2 x 100 ReLU, the paper's", navigation(), TASKS)


def pytorch_maml_rl_case() -> Case:
    """Navigation with the policy of pytorch-maml-rl."""
    policy: Any = {"hidden_sizes": (64, 64), "activation": jnp.tanh}
    return make_case("2 x 64 tanh, pytorch-maml-rl's", navigation(), TASKS, **policy)


def reinforcement_suite() -> Iterator[Row]:
    """Seconds of a meta-iteration's phases and of the whole, for two policies."""
    for case in (paper_case(), pytorch_maml_rl_case()):
        yield from phases(case)
        for episodes in (None, SUBSAMPLE):
            name = f"{case.name}: meta-iteration, {_curvature(episodes)}"
            yield time_iteration(name, case, episodes)


def _curvature(episodes: int | None) -> str:
    return f"curvature from {'all' if episodes is None else episodes} episodes"


def _update(case: Case, product_episodes: int | None) -> MetaUpdate:
    return trpo(case.problem, product_episodes=product_episodes, batching=preferred("batching"))


def time_iteration(name: str, case: Case, product_episodes: int | None, calls: int = 12) -> Row:
    """Seconds of a compiled meta-iteration, with the compile time of the first."""
    update = _update(case, product_episodes)
    train = make_train_fn(case.problem.sample, update, num_tasks=case.num_tasks, num_meta_steps=1)
    state = init(jax.jit(case.problem.init)(jax.random.key(0)), update, 0)
    return measure_loop(name, train, state, calls, 1)


def rollout_speed(case: Case, seconds: float = 2.0) -> float:
    """Environment steps a second of the rollouts of a meta-batch, tasks and noise drawn anew."""
    params, keys, over_tasks = _inputs(case)
    play = over_tasks(lambda p, k: jax.vmap(_player(case), (None, 0))(p, k), WHOLE, SPLIT)
    inputs = [(params, drawn) for drawn in keys]
    return case.num_steps / float(np.median(sample_times(rotating(play, inputs), seconds)))


def _inputs(case: Case) -> tuple[Any, list[Any], Callable[..., Any]]:
    """Parameters; several sets of keys of tasks; and what compiles a function of tasks.

    Over the devices that the meta-iteration runs on.
    """
    mesh = task_mesh(case.num_tasks)
    keys = split_tasks(jax.random.split(jax.random.key(1), case.num_tasks), mesh)

    def over_tasks(fn: Callable[..., Any], *in_specs: Any, out_specs: Any = SPLIT) -> Any:
        return jax.jit(on_mesh(fn, mesh, in_specs, out_specs))

    return jax.jit(case.problem.init)(jax.random.key(0)), variants(keys), over_tasks


def _player(case: Case) -> Callable[[Any, Array], Any]:
    env, policy = case.problem.env, case.problem.policy

    def play(params: Any, key: Array) -> Any:
        task_key, episode_key = jax.random.split(key)
        task = env.sample_task(task_key)
        return rollout(env, policy, params, task, episode_key, case.problem.num_episodes)

    return play


def phases(case: Case, least: int = 5) -> Iterator[Row]:
    """Compiles each phase separately.

    Args:
        case: what is timed.
        least: samples of each phase.
    """
    play, learner = _player(case), case.problem.learner
    params, several, over_tasks = _inputs(case)

    def adapt(params: Any, samples: Any) -> Any:  # an axis of one inner step
        return jax.vmap(lambda s: learner.adapt(params, jax.tree.map(lambda x: x[None], s)))(
            samples
        )

    rollouts = over_tasks(lambda p, k: jax.vmap(play, (None, 0))(p, k), WHOLE, SPLIT)
    estimates = over_tasks(jax.vmap(to_samples), SPLIT)
    adaptation = over_tasks(adapt, WHOLE, SPLIT)
    after = over_tasks(jax.vmap(play), SPLIT, SPLIT)
    trajectories = [rollouts(params, keys) for keys in several]
    samples = [estimates(played) for played in trajectories]
    adapted = [adaptation(params, drawn) for drawn in samples]
    calls = {
        "rollout": (rollouts, [(params, keys) for keys in several]),
        "baseline and advantages": (estimates, [(played,) for played in trajectories]),
        "adaptation": (adaptation, [(params, drawn) for drawn in samples]),
        "rollout of the adapted": (after, list(zip(adapted, several, strict=True))),
    }
    for name, (phase, inputs) in calls.items():
        times = sample_times(rotating(phase, inputs), 1.0, least)
        yield summarize(f"{case.name}: {name}", times)
    batches = [
        (params, Task(jax.tree.map(lambda x: x[:, None], drawn), estimates(after(theta, keys))))
        for drawn, theta, keys in zip(samples, adapted, several, strict=True)
    ]
    for episodes in (None, SUBSAMPLE):
        update = _update(case, episodes).update
        step = lambda p, tasks, update=update: update(p, (), tasks)[0]
        compiled = over_tasks(step, WHOLE, SPLIT, out_specs=WHOLE)
        times = sample_times(rotating(compiled, batches), 3.0, least)
        yield summarize(f"{case.name}: TRPO, {_curvature(episodes)}", times)
