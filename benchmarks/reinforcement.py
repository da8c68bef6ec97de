"""Meta-iterations of 2D navigation, phase by phase; and estimators against exact meta-gradients.

On a CPU each core is one JAX device with one thread, as the experiments run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.harness import measure_loop, rotating, sample_times, summarize, variants
from maml_jax import Task, init, meta_loss, task_mesh
from maml_jax.batching import TASK_AXIS, split_tasks
from maml_jax.maml import inner_update
from maml_jax.networks import categorical_policy, gaussian_policy
from maml_jax.reinforcement import (
    Environment,
    Estimation,
    ReinforcementProblem,
    make_iterate_fn,
    navigation,
    reinforcement_problem,
    rollout,
    to_samples,
    trpo,
)
from maml_jax.reinforcement.objectives import INNER_OBJECTIVES
from maml_jax.reinforcement.tabular import Tables, expected_adapted_return, tabular
from maml_jax.types import Array

TASKS, EPISODES, INNER_LR = 20, 20, 0.1
SUBSAMPLE = 5  # episodes of a task for the curvature


class Size(NamedTuple):
    """A policy's size.

    Attributes:
        name: whose it is.
        hidden_sizes: layers.
        activation: of them.
    """

    name: str
    hidden_sizes: tuple[int, ...]
    activation: Callable[[Array], Array]


PAPER = Size("2 x 100 ReLU, the paper's", (100, 100), jax.nn.relu)
PYTORCH_MAML_RL = Size("2 x 64 tanh, pytorch-maml-rl's", (64, 64), jnp.tanh)


class Case(NamedTuple):
    """What is timed.

    Attributes:
        name: of it.
        env: the family of tasks.
        problem: with its policy.
        num_tasks: T.
        num_episodes: E.
    """

    name: str
    env: Environment
    problem: ReinforcementProblem
    num_tasks: int
    num_episodes: int


def reinforcement_suite() -> list[dict[str, Any]]:
    """Seconds of a whole meta-iteration of navigation and of its phases, for two policies."""
    return [row for size in (PAPER, PYTORCH_MAML_RL) for row in whole_and_phases(make_case(size))]


def make_case(size: Size) -> Case:
    """Navigation as the paper has it."""
    env = navigation()
    policy = gaussian_policy(2, 2, size.hidden_sizes, activation=size.activation)
    problem = reinforcement_problem(env, policy, num_episodes=EPISODES, inner_lr=INNER_LR)
    return Case(size.name, env, problem, TASKS, EPISODES)


def whole_and_phases(case: Case) -> list[dict[str, Any]]:
    """A meta-iteration's phases, then the whole, with two ways to estimate the curvature."""
    rows = [*phases(case)]
    for episodes in (None, SUBSAMPLE):
        rows.append(time_iteration(f"{case.name}: meta-iteration, {_curvature(episodes)}",
                                   case, episodes))  # fmt: skip
    return rows


def _curvature(episodes: int | None) -> str:
    return f"curvature from {'all' if episodes is None else episodes} episodes"


def _batching() -> str:
    return "scan" if jax.default_backend() == "cpu" else "vmap"


def time_iteration(
    name: str, case: Case, product_episodes: int | None, calls: int = 12
) -> dict[str, Any]:
    """Seconds of a compiled meta-iteration, with the compile time of the first."""
    update = trpo(case.problem, product_episodes=product_episodes, batching=_batching())
    iterate = make_iterate_fn(case.problem, update, num_tasks=case.num_tasks)
    state = init(jax.jit(case.problem.init)(jax.random.key(0)), update, 0)
    return measure_loop(name, iterate, state, calls, 1)._asdict()


def rollout_speed(case: Case, seconds: float = 2.0) -> float:
    """Environment steps a second of the rollouts of a meta-batch, tasks and noise drawn anew."""
    mesh = task_mesh(case.num_tasks)
    keys = split_tasks(jax.random.split(jax.random.key(1), case.num_tasks), mesh)
    params = jax.jit(case.problem.init)(jax.random.key(0))
    split = PartitionSpec(TASK_AXIS)
    play = jax.jit(
        jax.shard_map(
            lambda p, k: jax.vmap(functools.partial(_play, case), (None, 0))(p, k),
            mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False,
        )
    )  # fmt: skip
    inputs = [(params, own) for own in variants(keys)]
    taken = float(np.median(sample_times(rotating(play, inputs), seconds)))
    return case.num_tasks * case.num_episodes * case.env.horizon / taken


def _play(case: Case, params: Any, key: Array) -> Any:
    task_key, own = jax.random.split(key)
    task = case.env.sample_task(task_key)
    return rollout(case.env, case.problem.policy, params, task, own, case.num_episodes)


def phases(case: Case, least: int = 5) -> Iterator[dict[str, Any]]:
    """Each phase as a program of its own, over the devices that the meta-iteration runs on.

    Args:
        case: what is timed.
        least: samples of each phase.
    """
    problem = case.problem
    params = jax.jit(problem.init)(jax.random.key(0))
    mesh = task_mesh(case.num_tasks)
    several = variants(split_tasks(jax.random.split(jax.random.key(1), case.num_tasks), mesh))
    whole, split = PartitionSpec(), PartitionSpec(TASK_AXIS)

    def over_tasks(fn: Callable[..., Any], *in_specs: Any) -> Callable[..., Any]:
        return jax.jit(
            jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)
        )

    play = functools.partial(_play, case)
    rollouts = over_tasks(lambda p, k: jax.vmap(play, (None, 0))(p, k), whole, split)
    estimates = over_tasks(jax.vmap(to_samples), split)
    adaptation = over_tasks(
        lambda p, s: jax.vmap(
            lambda one: inner_update(problem.inner_loss, p, one, INNER_LR)[0]
        )(s),
        whole,
        split,
    )  # fmt: skip
    after = over_tasks(lambda p, k: jax.vmap(play)(p, k), split, split)
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
        yield summarize(f"{case.name}: {name}", times, None, None)._asdict()
    batches = [
        (params, Task(jax.tree.map(lambda x: x[:, None], drawn), estimates(after(own, keys))))
        for drawn, own, keys in zip(samples, adapted, several, strict=True)
    ]
    for episodes in (None, SUBSAMPLE):
        update = trpo(problem, product_episodes=episodes, batching=_batching()).update

        def step(params: Any, tasks: Task, update: Any = update) -> Any:
            return update(params, (), tasks, mesh.size)[0]

        compiled = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(whole, split), out_specs=whole,
                          check_vma=False)
        )  # fmt: skip
        times = sample_times(rotating(compiled, batches), 3.0, least)
        name = f"{case.name}: TRPO, {_curvature(episodes)}"
        yield summarize(name, times, None, None)._asdict()


def estimators_suite(repeats: int = 2_000, episodes: int = 20) -> list[dict[str, Any]]:
    """Bias and deviation of each inner objective's meta-gradient, against the exact one.

    On a bandit of 3 actions and on a process of 3 states, 3 actions and 5 steps, both random; E
    episodes before and after one inner step, no baseline, advantages not normalised. The error is
    relative to the exact meta-gradient's norm; "bias" is that of the mean over all repeats, which
    has a standard error of "deviation" divided by the square root of their number. A bias is left
    in all estimators from the inner step's own noise; it falls as 1/E.
    """
    worlds = [
        World("bandit", _random_tables(jax.random.key(3), 1, 3), 1, 1.0),
        World("5 steps", _random_tables(jax.random.key(3), 3, 3), 5, 1.0),
    ]
    return [
        _estimator_row(world, form, repeats, episodes)
        for world in worlds
        for form in INNER_OBJECTIVES
    ]


class World(NamedTuple):
    """A process with a known meta-gradient.

    Attributes:
        name: of it.
        tables: rewards and transitions.
        horizon: H.
        inner_lr: alpha, on the mean over time steps.
    """

    name: str
    tables: Tables
    horizon: int
    inner_lr: float


def _estimator_row(world: World, form: str, repeats: int, episodes: int) -> dict[str, Any]:
    states, actions = world.tables.rewards.shape
    policy = categorical_policy(states, actions, ())
    params = policy.init(jax.random.key(0))

    def exact_loss(p: Any) -> Array:
        found = expected_adapted_return(policy, p, world.tables, world.horizon, world.inner_lr)
        return -found / world.horizon

    target = _flat(jax.jit(jax.grad(exact_loss))(params))
    problem = reinforcement_problem(
        tabular(lambda key: world.tables, states, actions, world.horizon),
        policy,
        num_episodes=episodes,
        inner_lr=world.inner_lr,
        objective=form,
        estimation=Estimation(1.0, 1.0, use_baseline=False, normalize=False),
    )

    def recorded_loss(p: Any, task: Task) -> Array:
        loss, rate = problem.inner_loss, world.inner_lr
        outer = problem.outer_loss
        return meta_loss(loss, p, task, rate, outer_loss=outer, batch_per_step=True)[0]

    def estimate(key: Array) -> Array:
        return _flat(jax.grad(recorded_loss)(params, problem.sample(params, key)))

    keys = jax.random.split(jax.random.key(7), repeats)
    found = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64)
    scale = np.linalg.norm(target)
    return {
        "name": f"{world.name}: {form}",
        "bias": float(np.linalg.norm(found.mean(0) - target) / scale),
        "deviation": float(np.sqrt(found.var(0).sum()) / scale),
        "episodes": episodes,
        "repeats": repeats,
    }


def _random_tables(key: Array, states: int, actions: int) -> Tables:
    a, b, c = jax.random.split(key, 3)
    return Tables(
        jax.random.normal(a, (states, actions)),
        jax.nn.softmax(jax.random.normal(b, (states, actions, states))),
        jax.nn.softmax(jax.random.normal(c, (states,))),
    )


def _flat(tree: Any) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
