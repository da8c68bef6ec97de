"""Evaluates one member: each method on the same test tasks after 0 to U gradient steps."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.fitting import Selection
from maml_jax.reinforcement import Environment
from maml_jax.types import Array, Params, PyTree

from ..core.logbook import say
from ..core.results import METHOD_TITLES, make_row
from ..core.stages import Outcome
from .config import ADAPTED, Config, make_problem
from .returns import ReturnsFn, Watch, draw_tasks, make_returns_fn

TEST_SEED, TUNING_SEED = 1_000_001, 1_000_003  # seeds of training runs are smaller


def evaluate(
    config: Config,
    seed: int,
    env: Environment,
    setting: str,
    watch: Watch,
    selections: Mapping[str, Selection],
) -> Outcome:
    """Measures the returns of each method on the same test tasks.

    MAML adapts with its step size of training. A baseline adapts with the step size of the largest
    return on tuning tasks, averaged over all gradient steps. The oracle does not adapt.
    """
    tests = draw_tasks(env, TEST_SEED, config.eval_tasks)
    tuning = draw_tasks(env, TUNING_SEED, config.tuning_tasks)
    some = jax.tree.map(lambda x: x[: watch.num_tasks], tests)
    rows, arrays = [], {"tasks": np.asarray(jax.jit(jax.vmap(env.task_features))(some))}
    for name in config.trained:
        if name == "random":
            params = jax.jit(make_problem(config, env, name).init)(
                jax.random.split(jax.random.key(seed))[0]
            )
        else:
            params = selections[name].best_params
            arrays[f"best_step/{name}"] = np.asarray(selections[name].best_step)
        num_updates = 0 if name == "oracle" else config.eval_updates
        returns_of = make_returns_fn(
            config, env, watch, name == "oracle", num_updates, config.eval_episodes
        )
        extra, rates = {}, jnp.zeros((0,))
        if name != "oracle":
            extra["inner_lr"] = rate = (
                config.inner_lr if name in ADAPTED else tuned(config, returns_of, params, tuning)
            )
            rates = update_rates(config, rate)
        returns, blown, watched = returns_of(params, tests, jax.random.key(TEST_SEED), rates)
        for update in range(num_updates + 1):
            row = make_row(name, setting, update, "return", returns[:, update])
            share = {"nonfinite_episodes": float(blown[update])} if blown[update] else {}
            rows.append({**row, **extra, **share})
        _report_nonfinite(name, blown)
        arrays[f"returns/{name}"] = returns
        arrays |= {f"{key}/{name}": value[: watch.num_tasks] for key, value in watched.items()}
    return Outcome(rows, arrays)


def _report_nonfinite(name: str, blown: np.ndarray) -> None:
    if np.any(blown):
        say(
            f"  {METHOD_TITLES[name]}: {100 * np.max(blown):.3g} % of the episodes became "
            f"non-finite (after {int(np.argmax(blown))} gradient steps). Each counts as H + 1 "
            "steps of the worst reward; a task with half of its episodes non-finite has no return."
        )


def update_rates(config: Config, rate: float, count: int | None = None) -> Array:
    """The step size of each gradient step of the evaluation [U].

    Args:
        config: of the run.
        rate: of the first `inner_steps` steps; later ones take `later_rate` times it.
        count: U; default: the configuration's.
    """
    updates = range(config.eval_updates if count is None else count)
    return jnp.array(
        [rate * (1.0 if i < config.inner_steps else config.later_rate) for i in updates],
        jnp.result_type(float),
    )


def tuned(config: Config, returns_of: ReturnsFn, params: Params, tasks: PyTree) -> float:
    """The step size of the largest return on tuning tasks, averaged over all gradient steps.

    A step size without a finite return is taken only if all have none.
    """
    key = jax.random.key(TUNING_SEED)
    means = [
        np.mean(returns_of(params, tasks, key, update_rates(config, rate)).returns)
        for rate in config.tuning_rates
    ]
    return float(config.tuning_rates[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))])
