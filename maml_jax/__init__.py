"""Model-agnostic meta-learning in JAX: pure functions on pytrees.

    theta' = inner_update(loss_fn, theta, support, inner_lr)       one gradient step on one task
    theta', metrics = adapt(...)                                   S of them
    loss, metrics = meta_loss(loss_fn, theta, task, inner_lr)      to be differentiated in theta

Compose them with `jax.grad`, `jax.vmap` and `jax.jit`, or let `make_train_fn` do so.
"""

from maml_jax.batching import default_batching, seed_mesh, task_mesh
from maml_jax.evaluation import Evaluation, adaptation_curve, confidence_interval, make_evaluate_fn
from maml_jax.maml import PerStep, adapt, inner_update, meta_loss
from maml_jax.memory import MemoryUse, fitting_modes, format_memory_report, memory_report
from maml_jax.meta_gradient import MODES
from maml_jax.training import MetaState, check_finite, init, make_train_fn, meta_step, over_seeds
from maml_jax.types import NonFiniteError, Problem, Task

__version__ = "0.1.0"

__all__ = [
    "MODES",
    "Evaluation",
    "MemoryUse",
    "MetaState",
    "NonFiniteError",
    "PerStep",
    "Problem",
    "Task",
    "adapt",
    "adaptation_curve",
    "check_finite",
    "confidence_interval",
    "default_batching",
    "fitting_modes",
    "format_memory_report",
    "init",
    "inner_update",
    "make_evaluate_fn",
    "make_train_fn",
    "memory_report",
    "meta_loss",
    "meta_step",
    "over_seeds",
    "seed_mesh",
    "task_mesh",
]
