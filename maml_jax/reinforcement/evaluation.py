"""What adaptation achieves on new tasks, and whether the episodes of a run were sound."""

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

WARN_SHARE = 0.05  # of episodes that blew up


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
    """Returns of one task's episodes before adaptation and after each of U updates.

    For `maml_jax.make_evaluate_fn`, as `adaptation_curve` is where there are no episodes:

        evaluate = make_evaluate_fn(functools.partial(adaptation_returns, problem, num_updates=3))
        tasks = jax.vmap(env.sample_task)(keys), jax.random.split(key, T)
        evaluate(params, tasks, 0.1).mean["return"]  # [4]

    Args:
        problem: from `reinforcement_problem`; its number of steps and learning rate do not count.
        params: of the policy.
        task: of the environment, and the PRNG key of its episodes.
        inner_lr: alpha, as in `maml_jax.adapt`: `PerStep(rates)` for rates of each update.
        num_updates: U, 0 or more.
        num_episodes: E, new ones after each update; default the problem's.
        monitor: further metrics from the episodes after one update, leaves [H, E, ...].

    Returns:
        "return" (mean over episodes of `Trajectories.returns`), "nonfinite" (share of episodes that
        blew up) and what the monitor returns, each [U + 1, ...].

    Raises:
        ValueError: a count that is out of range, parameters, a task or rates that do not fit.
        TypeError: a count that is no int.
    """
    num_updates = checks.check_num_inner_steps(num_updates)
    num_episodes = problem.num_episodes if num_episodes is None else num_episodes
    checks.check_counts(num_episodes=num_episodes)
    expected = jax.eval_shape(problem.init, jax.random.key(0))
    checks.check_fits("params", expected, params, "They must be of the policy.")
    its_task, key = task

    def collect(params: Params, key: Array) -> tuple[Samples, Metrics]:
        t = rollout(problem.env, problem.policy, params, its_task, key, num_episodes)
        metrics = {"return": jnp.mean(t.returns), "nonfinite": jnp.mean(t.nonfinite, dtype=float)}
        return to_samples(t, problem.estimation), {**metrics, **(monitor(t) if monitor else {})}

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_updates + 1))
    return collect_and_adapt(collect, problem.inner_loss, params, keys, inner_lr, mask=problem.mask)


def check_episodes(metrics: Mapping[str, Any]) -> str | None:
    """Raises if no episode of a meta-step was sound. Reads the metrics back to the host.

    Args:
        metrics: of a train function.

    Returns:
        A warning for the user if in a meta-step `WARN_SHARE` of the episodes or more blew up, long
        before all do; else None.

    Raises:
        NonFiniteError: the environment returned a number that is not finite in every episode.
    """
    warning, highest = None, WARN_SHARE
    for when in ("before", "after"):
        share = float(np.max(np.asarray(metrics[when]["nonfinite"])))
        if share >= 1.0:
            raise NonFiniteError(
                f"every episode {when} adaptation met an observation or a reward that is not "
                "finite, so nothing can be learned. Look at the environment's reset and step: a "
                "reward that is NaN from the first step, or physics that blows up at once."
            )
        if share >= highest:
            highest = share
            warning = (
                f"{100 * share:.3g} % of the episodes {when} adaptation blew up: they met an "
                "observation or a reward that is not finite. Each counts as an episode of nothing "
                "but the worst reward. Look at the actions that the environment can take, and at "
                "the step sizes."
            )
    return warning


def sound_returns(per_task: Mapping[str, Any]) -> Array:
    """Mean return of each task after each update [T, U + 1]; NaN where half of it blew up.

    What an episode that blew up counts as (`Trajectories.returns`) would pass for a return.

    Args:
        per_task: of an `Evaluation` of `adaptation_returns`.
    """
    return jnp.where(per_task["nonfinite"] < 0.5, per_task["return"], jnp.nan)
