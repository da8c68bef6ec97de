"""Meta-reinforcement learning as a problem for the core: collect, then replay.

`sample` collects everything with gradients stopped: episodes of theta, an inner step, episodes of
the adapted parameters. The losses see only what was recorded; `meta_loss` differentiates the
recomputed adaptation. A rollout is never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from maml_jax import maml, types
from maml_jax.networks import Policy
from maml_jax.reinforcement import advantages as advantages_lib
from maml_jax.reinforcement.environment import Environment, check_environment
from maml_jax.reinforcement.objectives import Samples, inner_objective, surrogate
from maml_jax.reinforcement.rollout import Trajectories, rollout
from maml_jax.types import Array, Params, Problem, PyTree, Task


class Estimation(NamedTuple):
    """How advantages are estimated from recorded episodes.

    Attributes:
        discount: gamma, from 0 to 1.
        gae_lambda: of generalised advantage estimation; 1 for the whole return.
        use_baseline: whether to subtract the linear feature baseline.
        normalize: whether advantages of a task get mean 0 and deviation 1.
        bootstrap: whether an episode that the time limit cut off is credited with the baseline's
            value of what would have followed; the original code takes it as 0.
        advantages: the estimator, of the arguments of `advantages.generalized_advantages`.
    """

    discount: float = 0.99
    gae_lambda: float = 1.0
    use_baseline: bool = True
    normalize: bool = True
    bootstrap: bool = False
    advantages: Callable[..., Array] = advantages_lib.generalized_advantages


def to_samples(trajectories: Trajectories, estimation: Estimation = Estimation()) -> Samples:  # noqa: B008
    """Fits the baseline to the episodes of one task, and estimates their advantages by it."""
    t, how = trajectories, estimation
    returns = advantages_lib.discounted_returns(t.rewards, how.discount)
    explained, values, last = jnp.zeros(()), jnp.zeros_like(t.rewards), None
    if how.use_baseline:
        baseline = advantages_lib.fit_baseline(t.observations, returns, t.alive)
        explained = baseline.explained_variance
        values = advantages_lib.predict(baseline, t.observations)
        if how.bootstrap:
            horizon = t.rewards.shape[0]
            last = advantages_lib.predict(baseline, t.last_observation[None], horizon)[0]
            last = jnp.where(t.terminated, 0.0, last)
    found = how.advantages(t.rewards, values, t.alive, how.discount, how.gae_lambda, last)
    if how.normalize:
        found = advantages_lib.normalized(found, t.alive)
    metrics = {
        "return": jnp.mean(t.returns),
        "explained_variance": explained,
        "alive": jnp.mean(t.alive.astype(t.rewards.dtype)),
        "nonfinite": jnp.mean(t.nonfinite.astype(t.rewards.dtype)),
    }
    return Samples(t.observations, t.actions, found, t.alive, t.distribution, metrics)


class ReinforcementProblem(NamedTuple):
    """A `Problem`, with what only reinforcement learning has.

    Attributes:
        init: `init(key) -> params`, of the policy.
        sample: `sample(params, key) -> Task`: support is samples with a leading axis of S, one set
            for each inner step; query is samples of the adapted parameters.
        inner_loss: of one inner step, `inner_loss(params, samples)`.
        outer_loss: minus the likelihood-ratio surrogate, `outer_loss(params, samples)`.
        adapt: `adapt(params, task) -> params`: the recorded adaptation, recomputed.
        policy: the policy.
    """

    init: Callable[[Array], Params]
    sample: Callable[..., Task]
    inner_loss: types.LossFn
    outer_loss: types.LossFn
    adapt: Callable[[Params, Task], Params]
    policy: Policy

    @property
    def as_problem(self) -> Problem:
        """The four functions that the core knows."""
        return Problem(self.init, self.sample, self.inner_loss, self.outer_loss)

    def adapted_distribution(self, params: Params, task: Task) -> PyTree:
        """The adapted policy's distributions at the query's states, leaves [H, E, ...]."""
        return self.policy.unroll(self.adapt(params, task), task.query.observations)


def reinforcement_problem(
    env: Environment,
    policy: Policy,
    *,
    num_episodes: int,
    num_steps: int = 1,
    inner_lr: maml.InnerRate = 0.1,
    objective: str = "likelihood",
    estimation: Estimation = Estimation(),  # noqa: B008
    mask: maml.Mask = None,
    mode: str = "reverse",
) -> ReinforcementProblem:
    """MAML for policies (paper section 4.2, Algorithm 3).

    Args:
        env: the family of tasks.
        policy: that fits it.
        num_episodes: E, episodes of each inner step and of the outer one.
        num_steps: S, inner steps, each on new episodes; 0 trains one policy for all tasks.
        inner_lr: alpha, as in `maml.inner_update`.
        objective: of the inner step, a name in `objectives.INNER_OBJECTIVES`.
        estimation: of the advantages.
        mask: which parameters are adapted, as in `maml.adapt`.
        mode: "reverse", or "first_order". Others have no forward derivative, which TRPO's products
            need.

    Raises:
        ValueError: the environment or the policy is not what it should be; see `check_environment`.
    """
    types.check_num_steps(num_steps)
    check_environment(env, policy)
    inner_loss = inner_objective(policy, objective)

    def collect(params: Params, task: PyTree, key: Array) -> Samples:
        samples = to_samples(rollout(env, policy, params, task, key, num_episodes), estimation)
        slope = jax.grad(inner_loss, has_aux=True)(params, samples)[0]
        metrics = {**samples.metrics, "gradient_norm": jnp.linalg.norm(ravel_pytree(slope)[0])}
        return samples._replace(metrics=metrics)

    inner = {"mask": mask, "mode": mode}

    def adapt(params: Params, task: Task) -> Params:
        support, rate = task.support, inner_lr
        return maml.adapt(
            inner_loss, params, support, rate, num_steps, batch_per_step=True, **inner
        )[0]

    def sample(params: Params, key: Array) -> Task:
        """Episodes of one new task, before and after each inner step."""
        params = jax.lax.stop_gradient(params)
        task_key, *keys = jax.random.split(key, num_steps + 2)
        task = env.sample_task(task_key)

        # One loop, the query's turn included, so that the environment is compiled once: physics
        # takes most of the time that compiling takes. What the last turn adapts is not used.
        def turn(adapted: Params, own: Array) -> tuple[Params, Samples]:
            samples = collect(adapted, task, own)
            return maml.inner_update(inner_loss, adapted, samples, inner_lr, **inner)[0], samples

        _, collected = jax.lax.scan(turn, params, jnp.stack(keys))
        support = jax.tree.map(lambda x: x[:num_steps], collected)
        query = jax.tree.map(lambda x: x[num_steps], collected)
        return jax.lax.stop_gradient(Task(support, query))

    return ReinforcementProblem(
        policy.init,
        sample,
        inner_loss,
        surrogate(policy),
        adapt,
        policy,
    )
