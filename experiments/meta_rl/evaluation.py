"""Returns of each method on test tasks after 0 to U updates, and episodes to look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.logbook import say
from experiments.core.results import METHOD_TITLES, make_row
from experiments.core.runner import Outcome
from experiments.core.selection import Selection
from experiments.meta_rl.config import ADAPTED, Config
from experiments.meta_rl.stages import (
    environment_of,
    fixed_tasks,
    initial_params,
    returns_by_task,
    unstack,
)
from maml_jax.reinforcement import Environment, Returns, Trajectories, make_evaluate_fn
from maml_jax.types import Array, Params

TEST_SEED, TUNING_SEED = 1_000_001, 1_000_003  # of no training run: those are smaller


class Watch(NamedTuple):
    """What a figure shows of the episodes of the first seed's policies.

    Attributes:
        num_tasks: the first test tasks, at most.
        num_episodes: of each of them and each update, which is made from these episodes.
        keep: `keep(trajectories) -> arrays by name`; leaves [T, U + 1, H, E, ...].
    """

    num_tasks: int
    num_episodes: int
    keep: Callable[[Trajectories], Mapping[str, Any]]


def evaluate(
    config: Config,
    seed: int,
    env: Environment,
    setting: str,
    watch: Watch,
    states: Mapping[str, Selection],
) -> Outcome:
    """Returns of every method on the same test tasks.

    MAML is adapted with the step size that it was trained with, methods that were not trained to
    adapt with the one that does best on tuning tasks, on average over all updates; the oracle is
    not adapted.
    """
    tests = fixed_tasks(env, TEST_SEED, config.eval_tasks)
    tuning = fixed_tasks(env, TUNING_SEED, config.tuning_tasks)
    some = jax.tree.map(lambda x: x[: watch.num_tasks], tests)
    shown_tasks = jax.jit(jax.vmap(env.task_features))(some)
    rows, arrays = [], {"tasks": np.asarray(shown_tasks)}

    @functools.cache  # methods whose policies see the same share what is compiled
    def evaluations(told: bool) -> tuple[Callable[..., Returns], Callable[..., Returns]]:
        """Returns of all episodes of an evaluation, and the trajectories of those to look at."""
        seen = environment_of(config, env, told)
        options: Any = {"objective": config.inner_objective, "estimation": config.estimation}
        make = functools.partial(make_evaluate_fn, seen, config.make_policy(seen), **options)
        return (
            make(num_episodes=config.eval_episodes),
            make(num_episodes=watch.num_episodes, keep_trajectories=True),
        )

    for name in config.methods:
        if name == "random":
            params = initial_params(config, seed, env, name)
        else:
            params = states[name].best_params
            arrays[f"best_step/{name}"] = np.asarray(states[name].best_step)
        judge, play = evaluations(name == "oracle")
        each = unstack(params, config.num_seeds)
        if name == "oracle":
            chosen = [None] * config.num_seeds
        elif name in ADAPTED:
            chosen = [config.inner_lr] * config.num_seeds
        else:
            chosen = [_tuned(config, judge, one, tuning) for one in each]
        found = [
            judge(one, tests, jax.random.key(TEST_SEED), update_rates(config, rate))
            for one, rate in zip(each, chosen, strict=True)
        ]
        returns = np.stack([returns_by_task(one) for one in found])  # [seeds, T, U + 1]
        blown = np.mean([one.evaluation.mean["nonfinite"] for one in found], axis=0)  # [U + 1]
        extra = {} if name == "oracle" else {"inner_lr": chosen}
        for update in range(returns.shape[-1]):
            row = make_row(name, setting, update, "return", returns[:, :, update])
            share = {"nonfinite_episodes": float(blown[update])} if blown[update] else {}
            rows.append({**row, **extra, **share})
        if np.any(blown):
            say(
                f"  {METHOD_TITLES[name]}: {100 * np.max(blown):.3g} % of the episodes blew up "
                f"(after {int(np.argmax(blown))} updates). Each counts as an episode of nothing "
                "but the worst reward; a task where half of them did has no return."
            )
        arrays[f"returns/{name}"] = returns
        episodes = play(
            each[0], some, jax.random.key(TEST_SEED + 1), update_rates(config, chosen[0])
        ).trajectories
        for key, value in watch.keep(episodes).items():
            arrays[f"{key}/{name}"] = np.asarray(value)
    return Outcome(rows, arrays)


def update_rates(config: Config, rate: float | None, count: int | None = None) -> Array:
    """The step size of each update of the evaluation; none for a method that is not adapted.

    That of meta-training for as many updates as there were inner steps, then `later_rate` times it.
    """
    if rate is None or count == 0:
        return jnp.zeros((0,))
    updates = range(count or config.eval_updates)
    return jnp.array(
        [rate * (1.0 if i < config.inner_steps else config.later_rate) for i in updates]
    )


def _tuned(config: Config, judge: Any, params: Params, tasks: Any) -> float:
    """The step size with the best return on tuning tasks, on average over all updates.

    One with which episodes of a task blow up is taken only if all do that.
    """
    key = jax.random.key(TUNING_SEED)
    means = [
        float(jnp.mean(returns_by_task(judge(params, tasks, key, update_rates(config, rate)))))
        for rate in config.tuning_rates
    ]
    return float(config.tuning_rates[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))])
