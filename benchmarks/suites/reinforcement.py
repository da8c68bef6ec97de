"""Times meta-iterations of 2D navigation, phase by phase.

On a CPU each core is one JAX device with one thread, as in the experiments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.harness import (
    SPLIT,
    Row,
    measure_loop,
    rotating,
    sample_times,
    summarize,
    variants,
)
from maml_jax import MetaUpdate, Task, init, make_train_fn, task_mesh
from maml_jax.kernels.preferences import preferred
from maml_jax.mesh import on_mesh, split_tasks
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
from maml_jax.types import Array, Params

TASKS, EPISODES, INNER_LR = 20, 20, 0.1
SUBSAMPLE = 5  # episodes of a task for the curvature
WHOLE = PartitionSpec()


class Case(NamedTuple):
    """A problem to time.

    Attributes:
        name: of the case.
        problem: with its environment and policy.
        num_tasks: T of a meta-batch.
    """

    name: str
    problem: ReinforcementProblem
    num_tasks: int

    @property
    def num_steps(self) -> int:
        """Environment steps in one rollout of a meta-batch."""
        return self.num_tasks * self.problem.num_episodes * self.problem.env.horizon

    def params(self) -> Params:
        """Returns the initial meta-parameters."""
        return jax.jit(self.problem.init)(jax.random.key(0))

    def play(self, params: Params, key: Array) -> Any:
        """Draws a task and rolls out its episodes."""
        env, policy = self.problem.env, self.problem.policy
        task_key, episode_key = jax.random.split(key)
        task = env.sample_task(task_key)
        return rollout(env, policy, params, task, episode_key, self.problem.num_episodes)


def make_case(name: str, env: Environment, num_tasks: int, **policy: Any) -> Case:
    """Makes a case with the paper's inner learning rate and number of episodes.

    Args:
        name: of the case.
        env: environment.
        num_tasks: T of a meta-batch.
        **policy: options of `gaussian_policy`.
    """
    network = gaussian_policy(env.num_observations, env.num_actions, **policy)
    problem = reinforcement_problem(env, network, num_episodes=EPISODES, inner_lr=INNER_LR)
    return Case(name, problem, num_tasks)


def paper_case() -> Case:
    """Makes navigation with the paper's policy."""
    return make_case("2 x 100 ReLU, the paper's", navigation(), TASKS)


def pytorch_maml_rl_case() -> Case:
    """Makes navigation with the policy of pytorch-maml-rl."""
    policy: Any = {"hidden_sizes": (64, 64), "activation": jnp.tanh}
    return make_case("2 x 64 tanh, pytorch-maml-rl's", navigation(), TASKS, **policy)


def reinforcement_suite() -> Iterator[Row]:
    """Times the phases of a meta-iteration and the whole of it, for two policies."""
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
    """Times a compiled meta-iteration; the row has the compile time, too.

    Args:
        name: of the row.
        case: the problem.
        product_episodes: episodes of a task for TRPO's curvature; None for all.
        calls: number of timed meta-iterations.
    """
    update = _update(case, product_episodes)
    train = make_train_fn(case.problem.sample, update, num_tasks=case.num_tasks, num_meta_steps=1)
    return measure_loop(name, train, init(case.params(), update, 0), calls, 1)


def rollout_speed(case: Case, seconds: float = 2.0) -> float:
    """Measures environment steps a second of a meta-batch's rollouts.

    Args:
        case: the problem; tasks and noise differ between calls.
        seconds: approximate time to measure for.
    """
    rollouts, inputs = _rollouts(case)
    return case.num_steps / float(np.median(sample_times(rotating(rollouts, inputs), seconds)))


def _rollouts(case: Case) -> tuple[Callable[..., Any], list[tuple[Params, Array]]]:
    """Returns the compiled rollouts of a meta-batch, and meta-parameters and keys for them."""
    mesh, params = task_mesh(case.num_tasks), case.params()
    keys = split_tasks(jax.random.split(jax.random.key(1), case.num_tasks), mesh)
    rollouts = _over_tasks(case, jax.vmap(case.play, (None, 0)), WHOLE, SPLIT)
    return rollouts, [(params, several) for several in variants(keys)]


def _over_tasks(
    case: Case, fn: Callable[..., Any], *in_specs: Any, out_specs: Any = SPLIT
) -> Callable[..., Any]:
    """Compiles a function of tasks for the devices that the meta-iteration uses."""
    return jax.jit(on_mesh(fn, task_mesh(case.num_tasks), in_specs, out_specs))


def phases(case: Case, least: int = 5) -> Iterator[Row]:
    """Times the phases of a meta-iteration, each compiled separately.

    Args:
        case: the problem.
        least: minimum number of samples of each phase.
    """
    over_tasks = functools.partial(_over_tasks, case)

    def adapt(params: Params, samples: Any) -> Params:
        steps = jax.tree.map(lambda x: x[:, None], samples)  # an axis of one inner step
        return jax.vmap(case.problem.learner.adapt, (None, 0))(params, steps)

    rollouts, inputs = _rollouts(case)
    estimates = over_tasks(jax.vmap(to_samples), SPLIT)
    adaptation = over_tasks(adapt, WHOLE, SPLIT)
    after = over_tasks(jax.vmap(case.play), SPLIT, SPLIT)
    params, keys = inputs[0][0], [several for _, several in inputs]
    trajectories = [rollouts(*both) for both in inputs]
    samples = [estimates(played) for played in trajectories]
    adapted = [adaptation(params, drawn) for drawn in samples]
    calls = {
        "rollout": (rollouts, inputs),
        "baseline and advantages": (estimates, [(played,) for played in trajectories]),
        "adaptation": (adaptation, [(params, drawn) for drawn in samples]),
        "rollout of the adapted": (after, list(zip(adapted, keys, strict=True))),
    }
    for name, (phase, arguments) in calls.items():
        times = sample_times(rotating(phase, arguments), 1.0, least)
        yield summarize(f"{case.name}: {name}", times)
    batches = [
        (params, Task(jax.tree.map(lambda x: x[:, None], drawn), estimates(after(*both))))
        for drawn, *both in zip(samples, adapted, keys, strict=True)
    ]
    for episodes in (None, SUBSAMPLE):
        update = _update(case, episodes).update
        step = lambda p, tasks, update=update: update(p, (), tasks)[0]
        compiled = over_tasks(step, WHOLE, SPLIT, out_specs=WHOLE)
        times = sample_times(rotating(compiled, batches), 3.0, least)
        yield summarize(f"{case.name}: TRPO, {_curvature(episodes)}", times)
