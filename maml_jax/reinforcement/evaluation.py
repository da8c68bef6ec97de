"""Returns on new tasks after adaptation, and checks for episodes that blew up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import checks
from maml_jax.inner_loop import InnerRate
from maml_jax.reinforcement.estimation import to_samples
from maml_jax.reinforcement.objectives import Samples
from maml_jax.reinforcement.problem import ReinforcementProblem
from maml_jax.reinforcement.rollout import Trajectories, rollout
from maml_jax.reinforcement.turns import collect_and_adapt
from maml_jax.types import Array, Metrics, NonFiniteError, Params, PyTree

WARN_SHARE = 0.05  # share of episodes that blew up


def adaptation_returns(
    problem: ReinforcementProblem,
    params: Params,
    task: tuple[PyTree, Array],
    inner_lr: InnerRate,
    num_updates: int,
    *,
    num_episodes: int | None = None,
    monitor: Callable[[Trajectories], Metrics] | None = None,
) -> Metrics:
    """Measures the returns of one task before adaptation and after each of U updates.

    Evaluate many tasks through `maml_jax.make_evaluate_fn`:

        evaluate = make_evaluate_fn(functools.partial(adaptation_returns, problem, num_updates=3))
        tasks = jax.vmap(env.sample_task)(keys), jax.random.split(key, T)
        evaluate(params, tasks, 0.1).mean["return"]  # [4]

    Args:
        problem: from `reinforcement_problem`; `inner_lr` and `num_updates` replace its settings.
        params: parameters of the policy.
        task: a task of the environment, and the PRNG key of its episodes.
        inner_lr: alpha, as in `maml_jax.adapt`; `PerStep(rates)` for a rate per update.
        num_updates: U, 0 or more.
        num_episodes: E, new episodes per update; default the problem's.
        monitor: `monitor(trajectories) -> metrics`, more metrics of the episodes after one update.

    Returns:
        "return" (mean of `Trajectories.returns` over episodes), "nonfinite" (share of episodes that
        blew up) and the monitor's metrics, each [U + 1, ...].

    Raises:
        ValueError: a count out of range, or parameters, a task or rates that do not fit.
        TypeError: a count is not an integer.

    Example:
        >>> import jax
        >>> from maml_jax.networks import categorical_policy
        >>> from maml_jax.reinforcement import adaptation_returns, reinforcement_problem
        >>> from maml_jax.reinforcement.tabular import bandit
        >>> problem = reinforcement_problem(
        ...     bandit(num_actions=2), categorical_policy(1, 2, hidden_sizes=()), num_episodes=3
        ... )
        >>> def evaluate(key):
        ...     task = problem.env.sample_task(key), key
        ...     return adaptation_returns(problem, problem.init(key), task, 0.1, num_updates=2)
        >>> jax.jit(evaluate)(jax.random.key(0))["return"].shape
        (3,)
    """
    num_updates = checks.check_num_inner_steps(num_updates)
    num_episodes = problem.num_episodes if num_episodes is None else num_episodes
    checks.check_counts(num_episodes=num_episodes)
    expected = jax.eval_shape(problem.init, jax.random.key(0))
    checks.check_fits("params", expected, params, "Use parameters of the problem's policy.")
    environment_task, key = task

    def collect(params: Params, key: Array) -> tuple[Samples, Metrics]:
        t = rollout(problem.env, problem.policy, params, environment_task, key, num_episodes)
        metrics = {"return": jnp.mean(t.returns), "nonfinite": jnp.mean(t.nonfinite, dtype=float)}
        return to_samples(t, problem.estimation), {**metrics, **(monitor(t) if monitor else {})}

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_updates + 1))
    return collect_and_adapt(collect, problem.inner_loss, params, keys, inner_lr, mask=problem.mask)


def check_episodes(metrics: Mapping[str, Any]) -> str | None:
    """Warns of episodes that blew up, and raises if all of a meta-step did.

    Copies the metrics to the host.

    Args:
        metrics: metrics of a train function.

    Returns:
        A warning if `WARN_SHARE` or more of a meta-step's episodes blew up, else None.

    Raises:
        NonFiniteError: in some meta-step the environment returned a non-finite observation or
            reward in every episode.

    Example:
        >>> from maml_jax.reinforcement import check_episodes
        >>> check_episodes({"before": {"nonfinite": 0.0}, "after": {"nonfinite": 0.01}})
        >>> warning = check_episodes({"before": {"nonfinite": 0.0}, "after": {"nonfinite": 0.1}})
        >>> warning[:46]
        '10 % of the episodes after adaptation blew up:'
    """
    warning, highest = None, WARN_SHARE
    for when in ("before", "after"):
        share = float(np.max(np.asarray(metrics[when]["nonfinite"])))
        if share >= 1.0:
            raise NonFiniteError(
                f"every episode {when} adaptation met an observation or a reward that is not "
                "finite: learning is impossible. Check the environment's reset and step for a "
                "reward that is NaN from the first step, or for physics that blows up at once."
            )
        if share >= highest:
            highest = share
            warning = (
                f"{100 * share:.3g} % of the episodes {when} adaptation blew up: they met an "
                "observation or a reward that is not finite. Each counts as H + 1 steps of the "
                "worst reward. Check the range of actions that the environment accepts, and the "
                "step sizes."
            )
    return warning


def sound_returns(per_task: Mapping[str, Any]) -> Array:
    """Replaces a task's mean return by NaN where half of its episodes or more blew up.

    Otherwise their penalties (`Trajectories.returns`) would pass for returns.

    Args:
        per_task: `Evaluation.per_task` of `adaptation_returns`.

    Returns:
        Mean return of each task after each update [T, U + 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from maml_jax.reinforcement import sound_returns
        >>> returns, nonfinite = jnp.array([[-3.0, -1.0]]), jnp.array([[0.0, 0.5]])
        >>> sound_returns({"return": returns, "nonfinite": nonfinite}).tolist()
        [[-3.0, nan]]
    """
    return jnp.where(per_task["nonfinite"] < 0.5, per_task["return"], jnp.nan)
