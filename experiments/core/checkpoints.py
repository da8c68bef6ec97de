"""Atomic checkpoints: orbax, with a digest of the content.

Orbax writes a checkpoint under a temporary name and renames it when it is complete, so that a
killed process leaves no partial checkpoint under a valid name. The digest detects damage to the
files afterwards. A damaged checkpoint is skipped; one of another run or step is refused.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from maml_jax.types import Array

from . import distributed


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not match the run; the message says what to do."""


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: meta-steps taken.
        state: the training state.
        info: the JSON object saved with it.
    """

    step: int
    state: Any
    info: dict[str, Any]


def _lone_reader() -> ocp.Checkpointer:
    """Makes a checkpointer that reads without synchronizing with the other processes.

    Orbax synchronizes all processes after a read. A process whose read fails would skip
    the barrier, and the others would match its next collective with it.
    """
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
    handler = ocp.CompositeCheckpointHandler()
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


class Checkpoints:
    """The checkpoints of one stage of a run, in one directory."""

    def __init__(self, directory: Path, keep: int = 2):
        """Opens or creates the directory, in which the newest `keep` checkpoints stay."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every save
        self._directory = directory.resolve()
        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, enable_async_checkpointing=False, create=True
                ),
            )
        except OSError as error:
            raise CheckpointError(f"cannot create {self._directory}: {error}.") from error

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Writes a checkpoint and waits until it is on the disk.

        Args:
            step: meta-steps taken.
            state: a pytree of arrays and PRNG keys.
            info: a JSON object to save with it.

        Raises:
            CheckpointError: the checkpoint cannot be written. Earlier ones stay as they are.
        """
        leaves = to_host(state)
        info = {**info, "step": step, "sha256": digest(leaves)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves), info=ocp.args.JsonSave(info)
                ),
                force=True,
            )
            self._manager.wait_until_finished()
        except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
            if distributed.is_lost(error):
                raise
            last = max((s for s in self.steps() if s != step), default=None)
            raise CheckpointError(
                f"could not write the checkpoint of step {step} to {self._directory}: "
                f"{_first_line(error)}. Is the disk full, or the directory not writable? "
                + ("No earlier checkpoint." if last is None else f"The one of step {last} is good.")
            ) from error

    def steps(self) -> list[int]:
        """Lists the steps of all complete checkpoints, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def restore(
        self,
        make_like: Callable[[], Any],
        warn: Callable[[str], None],
        read_only: bool = False,
        check: Callable[[Mapping[str, Any]], str | None] = lambda info: None,
    ) -> Restored | None:
        """Restores the newest undamaged checkpoint.

        Args:
            make_like: returns a state of the same structure, shapes and types; it is only traced.
            warn: receives a message for each damaged checkpoint. That checkpoint is moved to
                `NAME-STEP.damaged` beside the directory, so that the run can write its step again.
            read_only: whether to leave damaged and partial checkpoints in place, as another
                process may be writing them.
            check: `check(info)` describes the run of a checkpoint of another run; it returns None
                for this one's.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            CheckpointError: a checkpoint is of another run, another step, or another kind of
                state. It stays in place.
        """
        if not read_only:
            self._clear_half_written()
        steps = self._steps_of_first()
        for path in sorted(self._directory.glob("*/_CHECKPOINT_METADATA")):
            if not path.parent.name.isdigit() or path.parent.name != str(int(path.parent.name)):
                warn(f"{path.parent} is not named as a step and is skipped.")
        shapes, kinds = _describe(make_like) if steps else (None, {})
        for step in reversed(steps):
            restored, refusal, reason = None, None, "another process cannot read it"
            try:
                info = self._read(step, info=ocp.args.JsonRestore())["info"]
                refusal = _other_step(step, info) or check(info)
                if refusal is None:
                    restored, refusal = self._restore(step, info, shapes, kinds)
            except Exception as error:  # readers of damaged files raise many kinds
                if distributed.is_lost(error):
                    raise
                reason = _first_line(error)
            refused, damaged = distributed.any_of(
                refusal is not None, refusal is None and restored is None
            )
            if refused:
                refusal = refusal or "another run; the output of another process names it."
                raise CheckpointError(f"{self._directory / str(step)} is of {refusal}")
            if not damaged:
                return restored
            warn(
                f"checkpoint of step {step} in {self._directory} is damaged and is skipped: "
                f"{reason}"
            )
            if not read_only:
                self._set_aside(step)
        return None

    def _steps_of_first(self) -> list[int]:
        """Lists the steps that process 0 finds: a file system may show others an older listing."""
        newest = np.full(16, -1, np.int32)
        steps = self.steps()[-newest.size :]
        newest[: len(steps)] = steps
        return [int(step) for step in distributed.of_first(newest) if step >= 0]

    def _restore(
        self, step: int, info: dict[str, Any], shapes: Any, kinds: dict[str, Any]
    ) -> tuple[Restored | None, str | None]:
        """Reads a checkpoint; returns it, or a description of its state if the shapes differ."""
        leaves = self._read(step, state=ocp.args.StandardRestore())["state"]
        if digest(leaves) != info["sha256"]:
            raise ValueError("its content does not match its digest")
        refusal = _other_leaves(leaves, shapes)
        if refusal is not None:
            return None, refusal
        return Restored(step, _from_host(leaves, shapes, kinds), info), None

    def _read(self, step: int, **items: Any) -> Any:
        args = ocp.args.Composite(**items)
        if jax.process_count() == 1:
            return self._manager.restore(step, args=args)
        with _lone_reader() as reader:
            return reader.restore(self._directory / str(step), args=args)

    def _clear_half_written(self) -> None:
        """Removes partial checkpoints that a kill or a full disk left under temporary names."""
        if jax.process_index() == 0:  # no other process saves before this one
            for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        if distributed.is_first():
            target = self._directory.with_name(f"{self._directory.name}-{step}.damaged")
            shutil.rmtree(target, ignore_errors=True)
            (self._directory / str(step)).rename(target)
        distributed.wait_for_all("set aside")
        self._manager.reload()

    def close(self) -> None:
        """Closes orbax's files and threads."""
        self._manager.close()


def to_host(state: Any) -> dict[str, np.ndarray]:
    """Converts a state to NumPy arrays of JAX's types, by path; PRNG keys become their data."""

    def value(leaf: Any) -> np.ndarray:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    return {
        jax.tree_util.keystr(path): value(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _describe(make_like: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Returns a state's tree of shapes, with keys as data, and the implementation of each key."""
    kinds = {}

    def data(path: Any, x: Any) -> Any:
        if not _is_key(x):
            return x
        kinds[jax.tree_util.keystr(path)] = jax.random.key_impl(x)
        return jax.random.key_data(x)

    shapes = jax.eval_shape(lambda: jax.tree_util.tree_map_with_path(data, make_like()))
    return shapes, kinds


def _other_step(step: int, info: Mapping[str, Any]) -> str | None:
    """Describes the step of a checkpoint if it is not the one in its name; else None."""
    if info["step"] == step:
        return None
    return (
        f"step {info['step']}, not {step}: its folder was renamed. Nothing was changed. "
        f"Rename it to {info['step']}, or move it away."
    )


def _other_leaves(leaves: Mapping[str, np.ndarray], shapes: Any) -> str | None:
    """Describes a saved state whose names, shapes or types differ from `shapes`; else None."""
    expected = {
        jax.tree_util.keystr(path): f"{np.dtype(x.dtype)}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    saved = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}
    changed = [
        f"{name}: saved {saved.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in dict.fromkeys([*expected, *saved])
        if saved.get(name) != expected.get(name)
    ]
    if not changed:
        return None
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"another kind of state ({'; '.join(changed[:3])}{more}). Nothing was changed. Use the "
        "settings, the version and the environment variables of JAX that it was saved with, or "
        "another directory."
    )


def _from_host(leaves: dict[str, np.ndarray], shapes: Any, kinds: dict[str, Any]) -> Any:
    def convert(path: Any, _: Any) -> Array:
        name = jax.tree_util.keystr(path)
        value = jnp.asarray(leaves[name])
        return jax.random.wrap_key_data(value, impl=kinds[name]) if name in kinds else value

    return jax.tree_util.tree_map_with_path(convert, shapes)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def digest(leaves: dict[str, np.ndarray]) -> str:
    """Computes the SHA-256 of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name in sorted(leaves):
        value = np.ascontiguousarray(leaves[name])
        sha.update(f"{name}:{value.dtype}:{value.shape};".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
