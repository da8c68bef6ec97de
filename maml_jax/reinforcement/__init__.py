"""Meta-reinforcement learning: policies that adapt by policy gradients (paper section 4.2)."""

from maml_jax.reinforcement.checks import check_environment
from maml_jax.reinforcement.environment import (
    Environment,
    State,
    informed,
    with_feedback,
)
from maml_jax.reinforcement.estimation import Estimation, to_samples
from maml_jax.reinforcement.evaluation import adaptation_returns, check_episodes, sound_returns
from maml_jax.reinforcement.navigation import navigation
from maml_jax.reinforcement.objectives import Samples, inner_objective, surrogate
from maml_jax.reinforcement.problem import ReinforcementProblem, reinforcement_problem
from maml_jax.reinforcement.rollout import Trajectories, rollout
from maml_jax.reinforcement.trpo import trpo
from maml_jax.reinforcement.updates import surrogate_update

__all__ = [
    "Environment",
    "Estimation",
    "ReinforcementProblem",
    "Samples",
    "State",
    "Trajectories",
    "adaptation_returns",
    "check_environment",
    "check_episodes",
    "informed",
    "inner_objective",
    "navigation",
    "reinforcement_problem",
    "rollout",
    "sound_returns",
    "surrogate",
    "surrogate_update",
    "to_samples",
    "trpo",
    "with_feedback",
]
