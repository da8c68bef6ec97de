"""Meta-reinforcement learning as a `Problem`: collect episodes, then replay them (Algorithm 3).

`sample` collects with gradients stopped: episodes of theta, an inner step, episodes of the adapted
parameters. The losses take recorded episodes only, and the meta-learner's loss differentiates the
recomputed adaptation. No derivative passes through a rollout.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from maml_jax import checks
from maml_jax.algorithms import maml
from maml_jax.inner_loop import InnerRate, Mask
from maml_jax.networks import Policy
from maml_jax.reinforcement.checks import check_environment
from maml_jax.reinforcement.environment import Environment
from maml_jax.reinforcement.estimation import Estimation, check_estimation, to_samples
from maml_jax.reinforcement.objectives import Samples, inner_objective, surrogate
from maml_jax.reinforcement.rollout import rollout
from maml_jax.reinforcement.turns import collect_and_adapt
from maml_jax.types import Array, LossFn, MetaLearner, Params, Problem, PyTree, Task

# The other modes lack the forward derivative of TRPO's products, or save memory needlessly here.
MODES = ("reverse", "first_order")


class ReinforcementProblem(NamedTuple):
    """A policy, a family of tasks, and the settings of adaptation; from `reinforcement_problem`.

    It has the four functions of a `Problem` and a matching meta-learner. A replaced field holds in
    sampling and in learning: `problem._replace(outer_loss=surrogate(policy, clip=0.2))` trains on
    the clipped surrogate. Do not replace the policy, because the losses refer to it; call
    `reinforcement_problem` again.

    Attributes:
        env: the family of tasks.
        policy: the policy.
        inner_loss: `inner_loss(params, samples) -> (loss, metrics)`, loss of each inner step.
        outer_loss: the same form, on samples of the adapted policy.
        num_episodes: E, episodes of each inner step and of the outer one.
        num_inner_steps: S.
        inner_lr: alpha.
        estimation: settings of the advantages.
        mask: adapted parameters, as in `maml_jax.adapt`.
        mode: derivative of the adaptation, a name in `MODES`.

    Example:
        >>> from maml_jax.networks import gaussian_policy
        >>> from maml_jax.reinforcement import navigation, reinforcement_problem, surrogate
        >>> policy = gaussian_policy(2, 2, hidden_sizes=(4,))
        >>> problem = reinforcement_problem(navigation(), policy, num_episodes=2)
        >>> clipped = problem._replace(outer_loss=surrogate(policy, clip=0.2))
        >>> clipped.as_problem.outer_loss is clipped.outer_loss
        True
    """

    env: Environment
    policy: Policy
    inner_loss: LossFn
    outer_loss: LossFn
    num_episodes: int
    num_inner_steps: int
    inner_lr: InnerRate
    estimation: Estimation
    mask: Mask
    mode: str

    @property
    def as_problem(self) -> Problem:
        """The `Problem` of the core."""
        return Problem(self.init, self.sample, self.inner_loss, self.outer_loss)

    @property
    def learner(self) -> MetaLearner:
        """MAML on this problem; recomputes the adaptation from recorded episodes.

        Call `learner.adapt(params, task.support)` and `learner.loss(params, task)`.
        """
        return maml(
            self.as_problem,
            self.inner_lr,
            self.num_inner_steps,
            mask=self.mask,
            mode=self.mode,
            batch_per_step=True,
        )

    def init(self, key: Array) -> Params:
        """Returns initial parameters of the policy."""
        return self.policy.init(key)

    def sample(self, params: Params, key: Array) -> Task:
        """Draws a task and collects its episodes before and after each inner step (lines 5 to 8).

        Args:
            params: parameters of the policy before adaptation.
            key: PRNG key of the task and its episodes.

        Returns:
            A task. Support: `Samples` of each inner step, leaves [S, ...]. Query: `Samples` of the
            adapted parameters.
        """
        params = jax.lax.stop_gradient(params)
        task_key, *keys = jax.random.split(key, self.num_inner_steps + 2)
        task = self.env.sample_task(task_key)

        def collect(adapted: Params, key: Array) -> tuple[Samples, Samples]:
            samples = self._collect(adapted, task, key)
            return samples, samples

        collected = collect_and_adapt(
            collect,
            self.inner_loss,
            params,
            jnp.stack(keys),
            self.inner_lr,
            mask=self.mask,
            mode=self.mode,
        )
        support = jax.tree.map(lambda x: x[: self.num_inner_steps], collected)
        query = jax.tree.map(lambda x: x[self.num_inner_steps], collected)
        return jax.lax.stop_gradient(Task(support, query))

    def _collect(self, params: Params, task: PyTree, key: Array) -> Samples:
        episodes = rollout(self.env, self.policy, params, task, key, self.num_episodes)
        samples = to_samples(episodes, self.estimation)
        gradient = jax.grad(self.inner_loss, has_aux=True)(params, samples)[0]
        metrics = {**samples.metrics, "gradient_norm": jnp.linalg.norm(ravel_pytree(gradient)[0])}
        return samples._replace(metrics=metrics)


def reinforcement_problem(
    env: Environment,
    policy: Policy,
    *,
    num_episodes: int,
    num_inner_steps: int = 1,
    inner_lr: InnerRate = 0.1,
    objective: str = "likelihood",
    outer_loss: LossFn | None = None,
    estimation: Estimation = Estimation(),  # noqa: B008
    mask: Mask = None,
    mode: str = "reverse",
) -> ReinforcementProblem:
    """Makes the problem of MAML for policies (paper section 4.2, Algorithm 3).

    Args:
        env: the family of tasks.
        policy: a policy for `env`.
        num_episodes: E, episodes of each inner step and of the outer one.
        num_inner_steps: S, each on new episodes; 0 trains one policy for all tasks.
        inner_lr: alpha, as in `maml_jax.adapt`.
        objective: objective of the inner step, a name in `objectives.INNER_OBJECTIVES`.
        outer_loss: `outer_loss(params, samples) -> (loss, metrics)` of the adapted parameters;
            default `surrogate(policy)`.
        estimation: settings of the advantages.
        mask: adapted parameters, as in `maml_jax.adapt`.
        mode: derivative of the adaptation, a name in `MODES`.

    Raises:
        ValueError: a count out of range, an unknown objective or mode, a discount or lambda outside
            0 to 1, rates or a mask that do not fit the policy's parameters, or an error of
            `check_environment`.
        TypeError: a count is not an integer, or an error of `check_environment`.

    Example:
        >>> import jax
        >>> from maml_jax.networks import categorical_policy
        >>> from maml_jax.reinforcement import reinforcement_problem
        >>> from maml_jax.reinforcement.tabular import bandit
        >>> policy = categorical_policy(1, 2, hidden_sizes=())
        >>> problem = reinforcement_problem(bandit(num_actions=2), policy, num_episodes=3)
        >>> @jax.jit
        ... def adapt(key):
        ...     params = problem.init(key)
        ...     task = problem.sample(params, key)  # episodes before and after adaptation
        ...     return task, problem.learner.adapt(params, task.support)
        >>> task, adapted_params = adapt(jax.random.key(0))
        >>> task.support.advantages.shape, task.query.advantages.shape  # [S, H, E] and [H, E]
        ((1, 1, 3), (1, 3))
    """
    num_inner_steps = checks.check_num_inner_steps(num_inner_steps)
    checks.check_counts(num_episodes=num_episodes)
    checks.check_choice(mode, MODES, "mode")
    check_estimation(estimation)
    check_environment(env, policy)
    problem = ReinforcementProblem(
        env,
        policy,
        inner_objective(policy, objective),
        surrogate(policy) if outer_loss is None else outer_loss,
        num_episodes,
        num_inner_steps,
        inner_lr,
        estimation,
        mask,
        mode,
    )
    jax.eval_shape(
        lambda key: _adapt_without_episodes(problem, problem.init(key)), jax.random.key(0)
    )
    return problem


def _adapt_without_episodes(problem: ReinforcementProblem, params: Params) -> Params:
    """Adapts by a trivial loss; tracing it raises the errors of rates and mask."""
    loss = lambda p, batch: (jnp.sum(ravel_pytree(p)[0]), {})  # noqa: E731
    learner = maml(
        problem.as_problem._replace(inner_loss=loss),
        problem.inner_lr,
        problem.num_inner_steps,
        mask=problem.mask,
    )
    return learner.adapt(params, ())
