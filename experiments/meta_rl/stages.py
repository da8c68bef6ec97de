"""What is meta-trained: a stage for each method, which validates now and then."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.logbook import say
from experiments.core.results import METHOD_TITLES
from experiments.core.runner import Advance, Stage
from experiments.core.selection import Selection, begin, choose
from experiments.meta_rl.config import (
    ADAPTED,
    Config,
    make_meta_update,
    make_problem,
)
from maml_jax import init, over_seeds, seed_mesh
from maml_jax.batching import bring_home
from maml_jax.reinforcement import (
    Environment,
    Returns,
    check_episodes,
    informed,
    make_evaluate_fn,
    make_iterate_fn,
)
from maml_jax.types import Array, Params, PyTree

VALIDATION_SEED = 1_000_002  # of no training run: those are smaller


def make_stages(config: Config, seed: int, env: Environment) -> list[Stage]:
    """One stage for each method that is trained."""
    return [_stage(config, seed, env, name) for name in config.methods if name != "random"]


def environment_of(config: Config, env: Environment, told: bool) -> Environment:
    """What a method's policy sees, and whether it is told the task, as the oracle is."""
    return config.seen_by_policy(informed(env) if told else env)


def fixed_tasks(env: Environment, seed: int, count: int) -> PyTree:
    """Tasks that depend on nothing but a seed of no training run, leading axis T."""
    return jax.jit(jax.vmap(env.sample_task))(jax.random.split(jax.random.key(seed), count))


def seed_keys(config: Config, seed: int) -> Array:
    """The keys of a run's seeds [seeds]."""
    return jnp.stack([jax.random.key(seed + i) for i in range(config.num_seeds)])


def initial_params(config: Config, seed: int, env: Environment, method: str) -> Params:
    """What a method starts from, with a leading axis of seeds."""
    policy = config.make_policy(environment_of(config, env, method == "oracle"))
    start = jax.vmap(lambda key: policy.init(jax.random.split(key)[0]))
    return jax.jit(start)(seed_keys(config, seed))


def _stage(config: Config, seed: int, env: Environment, name: str) -> Stage:
    seen = environment_of(config, env, name == "oracle")
    problem = make_problem(config, seen, name)
    update = make_meta_update(config, problem)
    mesh = seed_mesh(config.num_seeds, config.num_tasks)

    def start() -> Selection:
        params = initial_params(config, seed, env, name)
        keys = jax.vmap(lambda key: jax.random.split(key)[1])(seed_keys(config, seed))
        states = [
            init(jax.tree.map(lambda p, i=i: p[i], params), update, keys[i])
            for i in range(config.num_seeds)
        ]
        return begin(jax.tree.map(lambda *x: jnp.stack(x), *states))

    @functools.cache
    def validation() -> Callable[[Params], Array]:
        """The return of each seed's parameters on validation tasks, adapted if the method does."""
        tasks = fixed_tasks(env, VALIDATION_SEED, config.validation_tasks)
        evaluate = make_evaluate_fn(
            seen,
            problem.policy,
            num_episodes=config.num_episodes,
            objective=config.inner_objective,
            estimation=config.estimation,
        )
        rates = jnp.full((config.inner_steps if name in ADAPTED else 0,), config.inner_lr)
        key = jax.random.key(VALIDATION_SEED + 1)

        def score(params: Params) -> Array:
            found = [
                returns_by_task(evaluate(one, tasks, key, rates))[:, -1]
                for one in unstack(params, config.num_seeds)
            ]
            return jnp.mean(jnp.stack(found), axis=1)

        return score

    def make_advance(count: int) -> Advance:
        iterate = make_iterate_fn(
            problem, update, num_tasks=config.num_tasks, num_steps=count, mesh=mesh
        )
        # On a CPU, batched weights are slower than a loop.
        train = over_seeds(iterate, one_by_one=jax.default_backend() == "cpu")

        def advance(selection: Selection) -> tuple[Selection, Any]:
            state, metrics = train(selection.train)
            warning = check_episodes(metrics)
            if warning:
                say(f"  {METHOD_TITLES[name]}: {warning}")
            selection = selection._replace(train=state)
            at = int(np.asarray(state.step)[0])
            due = at // config.validate_every > (at - count) // config.validate_every
            if due or at == config.meta_steps:
                score = validation()(bring_home(state.params))
                selection = choose(selection, score)
                shown = {"return": score, "best_return": selection.best_score}
                spread = jax.tree.map(lambda x: jnp.repeat(x[:, None], count, 1), shown)
                metrics = {**metrics, "validation": spread}
            return selection, metrics

        return Advance(advance, lambda selection: train.lower(selection.train).compile())

    return Stage(
        name=name,
        num_steps=config.meta_steps,
        steps_per_call=config.steps_per_call,
        init=start,
        make_advance=make_advance,
        shown=("before/return", "after/return"),
    )


def returns_by_task(returns: Returns) -> Array:
    """Mean return of each task after each update [T, U + 1].

    NaN where half of a task's episodes or more blew up: what such an episode counts as
    (`Trajectories.returns`) would pass for a return.
    """
    found = returns.evaluation.per_task
    return jnp.where(found["nonfinite"] < 0.5, found["return"], jnp.nan)


def unstack(params: Params, count: int) -> list[Params]:
    """The parameters of each seed."""
    return [jax.tree.map(lambda p, i=i: p[i], params) for i in range(count)]
