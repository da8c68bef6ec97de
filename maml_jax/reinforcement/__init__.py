"""Meta-reinforcement learning: policies that adapt by policy gradients (paper section 4.2)."""

from maml_jax.reinforcement.checks import check_environment
from maml_jax.reinforcement.environment import (
    Environment,
    State,
    informed,
    with_feedback,
)
from maml_jax.reinforcement.iteration import (
    Returns,
    check_episodes,
    make_evaluate_fn,
    make_iterate_fn,
)
from maml_jax.reinforcement.meta_updates import MetaUpdate, gradient_steps, trpo
from maml_jax.reinforcement.navigation import navigation
from maml_jax.reinforcement.objectives import Samples, inner_objective, surrogate
from maml_jax.reinforcement.problem import (
    Estimation,
    ReinforcementProblem,
    reinforcement_problem,
    to_samples,
)
from maml_jax.reinforcement.rollout import Trajectories, rollout

__all__ = [
    "Environment",
    "Estimation",
    "MetaUpdate",
    "ReinforcementProblem",
    "Returns",
    "Samples",
    "State",
    "Trajectories",
    "check_environment",
    "check_episodes",
    "gradient_steps",
    "informed",
    "inner_objective",
    "make_evaluate_fn",
    "make_iterate_fn",
    "navigation",
    "reinforcement_problem",
    "rollout",
    "surrogate",
    "to_samples",
    "trpo",
    "with_feedback",
]
