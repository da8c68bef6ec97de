"""Returns of each method on test tasks after 0 to U updates, and episodes to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.meta_rl.config import ADAPTED, Config, make_policy
from experiments.meta_rl.stages import environment_of, fixed_tasks, initial_params, unstack
from experiments.results import make_row
from experiments.runner import Outcome
from experiments.selection import Selection
from maml_jax.reinforcement import Environment, make_evaluate_fn
from maml_jax.types import Array, Params

TEST_SEED, TUNING_SEED = 1_000_001, 1_000_003  # of no training run: those are smaller
SHOWN_TASKS, SHOWN_EPISODES = 4, 5


def evaluate(
    config: Config, seed: int, env: Environment, setting: str, states: Mapping[str, Selection]
) -> Outcome:
    """Returns of every method on the same test tasks.

    MAML is adapted with the step size that it was trained with, methods that were not trained to
    adapt with the one that does best on tuning tasks, on average over all updates; the oracle is
    not adapted.
    """
    tests = fixed_tasks(env, TEST_SEED, config.eval_tasks)
    tuning = fixed_tasks(env, TUNING_SEED, config.tuning_tasks)
    some = jax.tree.map(lambda x: x[:SHOWN_TASKS], tests)
    shown_tasks = jax.jit(jax.vmap(env.task_features))(some)
    rows, arrays = [], {"tasks": np.asarray(shown_tasks)}
    for name in config.methods:
        if name == "random":
            params = initial_params(config, seed, env, name)
        else:
            params = states[name].best_params
            arrays[f"best_step/{name}"] = np.asarray(states[name].best_step)
        seen = environment_of(config, env, name)
        policy = make_policy(config, seen)
        options: Any = {"objective": config.inner_objective, "estimation": config.estimation}
        judge = make_evaluate_fn(seen, policy, num_episodes=config.eval_episodes, **options)
        each = unstack(params, config.num_seeds)
        if name == "oracle":
            chosen = [None] * config.num_seeds
        elif name in ADAPTED:
            chosen = [config.inner_lr] * config.num_seeds
        else:
            chosen = [_tuned(config, judge, one, tuning) for one in each]
        found = [
            np.asarray(
                judge(one, tests, jax.random.key(TEST_SEED), _rates(config, rate))
                .evaluation.per_task["return"]
            )
            for one, rate in zip(each, chosen, strict=True)
        ]  # fmt: skip
        returns = np.stack(found)  # [seeds, T, U + 1]
        extra = {} if name == "oracle" else {"inner_lr": chosen}
        for update in range(returns.shape[-1]):
            row = make_row(name, setting, update, "return", returns[:, :, update])
            rows.append({**row, **extra})
        arrays[f"returns/{name}"] = returns
        watch = make_evaluate_fn(
            seen, policy, num_episodes=SHOWN_EPISODES, keep_trajectories=True, **options
        )
        seen_episodes = watch(
            each[0], some, jax.random.key(TEST_SEED + 1), _rates(config, chosen[0])
        ).trajectories
        arrays[f"episodes/{name}/observations"] = np.asarray(seen_episodes.observations)
        arrays[f"episodes/{name}/alive"] = np.asarray(seen_episodes.alive)
    return Outcome(rows, arrays)


def _rates(config: Config, rate: float | None) -> Array:
    """The step size of each update; none for a method that is not adapted."""
    if rate is None:
        return jnp.zeros((0,))
    later = [rate * config.later_rate] * (config.eval_updates - 1)
    return jnp.array([rate, *later])


def _tuned(config: Config, judge: Any, params: Params, tasks: Any) -> float:
    """The step size with the best return on tuning tasks, on average over all updates."""
    key = jax.random.key(TUNING_SEED)
    means = [
        float(jnp.mean(judge(params, tasks, key, _rates(config, rate)).evaluation.mean["return"]))
        for rate in config.tuning_rates
    ]
    return float(config.tuning_rates[int(np.nanargmax(means))])
