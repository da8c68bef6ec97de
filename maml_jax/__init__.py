"""Model-agnostic meta-learning in JAX: pure functions on pytrees.

    theta' = inner_update(loss_fn, theta, support, inner_lr)       one gradient step on one task
    theta', metrics = adapt(...)                                   S of them
    loss, metrics = meta_loss(loss_fn, theta, task, inner_lr)      to be differentiated in theta

Compose them with `jax.grad`, `jax.vmap` and `jax.jit`, or let `make_train_fn` do so. A `Problem`
says what is to be learned, a `MetaLearner` how, a `MetaUpdate` how meta-parameters move.
"""

from maml_jax import algorithms
from maml_jax.evaluation import Evaluation, adaptation_curve, confidence_interval, make_evaluate_fn
from maml_jax.fitting import Selection, fit
from maml_jax.inner_loop import PerStep
from maml_jax.maml import adapt, inner_update, meta_loss, meta_step
from maml_jax.members import over_members
from maml_jax.memory import MemoryUse, advise, fitting_modes, format_memory_report, memory_report
from maml_jax.mesh import member_mesh, task_mesh
from maml_jax.meta_gradient import MODES
from maml_jax.training import MetaState, check_finite, init, make_train_fn
from maml_jax.types import MetaLearner, MetaUpdate, NonFiniteError, Problem, Task
from maml_jax.updates import gradient_update

__version__ = "0.2.0"

__all__ = [
    "MODES",
    "Evaluation",
    "MemoryUse",
    "MetaLearner",
    "MetaState",
    "MetaUpdate",
    "NonFiniteError",
    "PerStep",
    "Problem",
    "Selection",
    "Task",
    "adapt",
    "adaptation_curve",
    "advise",
    "algorithms",
    "check_finite",
    "confidence_interval",
    "fit",
    "fitting_modes",
    "format_memory_report",
    "gradient_update",
    "init",
    "inner_update",
    "make_evaluate_fn",
    "make_train_fn",
    "member_mesh",
    "memory_report",
    "meta_loss",
    "meta_step",
    "over_members",
    "task_mesh",
]
