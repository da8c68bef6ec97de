"""Meta-reinforcement learning as a problem for the core: collect, then replay (Algorithm 3).

`sample` collects everything with gradients stopped: episodes of theta, an inner step, episodes of
the adapted parameters. The losses see only what was recorded; the meta-learner's loss
differentiates the recomputed adaptation. A rollout is never differentiated.
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

# Others have no forward derivative, which TRPO's products need, or save memory that is not short.
MODES = ("reverse", "first_order")


class ReinforcementProblem(NamedTuple):
    """A policy to learn in a family of tasks; made by `reinforcement_problem`.

    It has the four functions of a `Problem`, and the meta-learner that adapts as `sample` does.
    What is replaced holds everywhere: `problem._replace(outer_loss=surrogate(policy, clip=0.2))`
    trains on the clipped surrogate. For another policy make another problem: the losses are of the
    policy that they were made of.

    Attributes:
        env: the family of tasks.
        policy: the policy.
        inner_loss: `inner_loss(params, samples) -> (loss, metrics)`, of each inner step.
        outer_loss: the same form, on samples of the adapted policy.
        num_episodes: E.
        num_inner_steps: S.
        inner_lr: alpha.
        estimation: of the advantages.
        mask: which parameters are adapted.
        mode: how the adaptation is differentiated.
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
        """The four functions that the core knows."""
        return Problem(self.init, self.sample, self.inner_loss, self.outer_loss)

    @property
    def learner(self) -> MetaLearner:
        """MAML on this problem: recomputes the adaptation from the recorded episodes.

        `learner.adapt(params, task.support)`, `learner.loss(params, task)`.
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
        """Parameters of the policy."""
        return self.policy.init(key)

    def sample(self, params: Params, key: Array) -> Task:
        """Episodes of one new task, before and after each inner step (lines 5 to 8).

        Returns:
            A task whose support is samples with a leading axis of S, one set for each inner step,
            and whose query is samples of the adapted parameters.
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
        slope = jax.grad(self.inner_loss, has_aux=True)(params, samples)[0]
        metrics = {**samples.metrics, "gradient_norm": jnp.linalg.norm(ravel_pytree(slope)[0])}
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
    """MAML for policies (paper section 4.2, Algorithm 3).

    Args:
        env: the family of tasks.
        policy: that fits it.
        num_episodes: E, episodes of each inner step and of the outer one.
        num_inner_steps: S, each on new episodes; 0 trains one policy for all tasks.
        inner_lr: alpha, as in `maml_jax.adapt`.
        objective: of the inner step, a name in `objectives.INNER_OBJECTIVES`.
        outer_loss: `outer_loss(params, samples) -> (loss, metrics)` of the adapted parameters;
            default `surrogate(policy)`.
        estimation: of the advantages.
        mask: which parameters are adapted, as in `maml_jax.adapt`.
        mode: how the adaptation is differentiated, a name in `MODES`.

    Raises:
        ValueError: a count below 1, an unknown objective or mode, a discount or lambda outside 0 to
            1, rates or a mask that do not fit the policy's parameters; or the environment or the
            policy is not what it should be, see `check_environment`.
        TypeError: a count is not an int, or as `check_environment`.
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
    """Adapts by a loss that costs nothing; traced, for the errors of rates and mask."""
    loss = lambda p, batch: (jnp.sum(ravel_pytree(p)[0]), {})  # noqa: E731
    made = maml(
        problem.as_problem._replace(inner_loss=loss),
        problem.inner_lr,
        problem.num_inner_steps,
        mask=problem.mask,
    )
    return made.adapt(params, ())
