"""JAX's cache of compiled programs: on by default, shared by processes, bounded, and optional."""

import os
import stat
import types
from pathlib import Path

import filelock
import pytest
from conftest import PATIENCE_S, QUICK, start_python

from experiments.core import compilation, places

ROOT = Path(__file__).resolve().parents[1]
CHOICES = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_", "JAX_ENABLE_COMPILATION_CACHE")
RUN = [
    "-m",
    "experiments.sinusoid",
    "--methods=maml",
    "--meta_steps=4",
    "--steps_per_call=2",
    "--num_tasks=2",
    "--hidden_sizes=4",
    "--num_shots=5",
    "--eval_steps=1",
    "--eval_tasks=4",
]


class FakeConfig:
    """JAX's settings of the cache, as they are where the environment sets none."""

    jax_enable_compilation_cache = True
    jax_compilation_cache_dir = None
    jax_compilation_cache_max_size = -1

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def config(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(CHOICES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAML_JAX_CACHE", str(tmp_path / "cache"))
    config = FakeConfig()
    monkeypatch.setattr(compilation, "jax", types.SimpleNamespace(config=config))
    return config


def start(cache, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(CHOICES)}
    # Compiled in XLA's quickest way, few programs take the 0.1 s from which they are kept.
    short = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.02"}
    environment |= {"MAML_JAX_CACHE": str(cache), "XLA_FLAGS": QUICK, **short, **variables}
    return start_python(arguments, environment)


def finish(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "compilation cache entry" not in err  # JAX's warning of an error in its cache
    return out


def test_processes_share_the_cache_that_is_on_by_default(tmp_path):
    """Two that start together both finish; a third loads their programs; a fourth has no cache."""
    cache = tmp_path / "cache"
    for process in [start(cache, *RUN, f"--workdir={tmp_path / name}") for name in "ab"]:
        finish(process)
    (folder,) = (cache / "compiled").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    entries = {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}
    assert entries
    assert {path.name.removesuffix("-atime") for path in folder.glob("*-atime")} == entries
    out = finish(start(cache, *RUN, f"--workdir={tmp_path / 'c'}"))
    assert "(programs loaded from the cache: " in out
    assert "evaluating: compiling ..." in out
    (tmp_path / "file").write_text("not a folder")
    again = start(tmp_path / "file", *RUN, f"--workdir={tmp_path / 'c'}")
    out, err = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, err
    assert "is done; its results" in out
    assert "note: compiled programs cannot be kept" in err


def test_the_least_recently_used_programs_are_removed(tmp_path):
    code = (
        "import jax\n"
        "from experiments.core import compilation\n"
        "compilation.keep_compiled(None)\n"
        "for i in range(12):\n"
        "    jax.jit(lambda x: (x @ x + i).sum()).lower(jax.numpy.ones((9, 9))).compile()\n"
        "files = list(compilation.default_folder().glob('*-cache'))\n"
        "print(len(files), sum(file.stat().st_size for file in files))\n"
    )
    sizes = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    whole = finish(start(tmp_path / "whole", "-c", code, **sizes)).split()
    limit = int(whole[1]) // 2
    sizes["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(limit)
    bounded = finish(start(tmp_path / "bounded", "-c", code, **sizes)).split()
    assert int(whole[0]) >= 12
    assert 0 < int(bounded[0]) < int(whole[0])
    assert int(bounded[1]) <= limit


def test_the_default_folder_is_bounded_and_of_one_number_of_threads(config, monkeypatch, tmp_path):
    monkeypatch.setenv("PJRT_NPROC", "3")
    compilation.keep_compiled(None)
    assert config.jax_compilation_cache_dir == str(tmp_path / "cache/compiled/3_threads")
    assert config.jax_compilation_cache_max_size == compilation.MAX_BYTES
    assert config.jax_persistent_cache_enable_xla_caches == "none"
    assert config.jax_persistent_cache_min_compile_time_secs == 0.1


def test_settings_of_the_environment_take_precedence(config, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "5")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    compilation.keep_compiled(None)
    assert config.jax_compilation_cache_max_size == -1  # JAX itself reads the variable
    assert not hasattr(config, "jax_persistent_cache_min_compile_time_secs")


def test_off(config, tmp_path):
    compilation.keep_compiled(compilation.OFF)
    assert not config.jax_enable_compilation_cache
    assert not (tmp_path / "cache").exists()


def test_one_of_several_processes_uses_no_default_folder(config, tmp_path):
    compilation.keep_compiled(None, by_default=False)
    assert config.jax_compilation_cache_dir is None
    assert not (tmp_path / "cache").exists()
    compilation.keep_compiled(str(tmp_path / "mine"), by_default=False)
    assert config.jax_compilation_cache_dir == str(tmp_path / "mine")


@pytest.mark.parametrize("source", ["flag", "variable"])
def test_a_folder_that_the_user_names_has_no_bound(config, tmp_path, source):
    mine = str(tmp_path / "mine")
    if source == "variable":
        config.jax_compilation_cache_dir = mine
    compilation.keep_compiled(mine if source == "flag" else None)
    assert config.jax_compilation_cache_dir == mine
    assert config.jax_compilation_cache_max_size == -1
    assert not (tmp_path / "cache").exists()


def test_a_bucket_is_left_to_jax(config):
    compilation.keep_compiled("gs://bucket/folder")
    assert config.jax_compilation_cache_dir == "gs://bucket/folder"


@pytest.mark.parametrize("source", ["default", "flag"])
def test_a_folder_that_cannot_be_made_turns_the_cache_off(config, tmp_path, capsys, source):
    (tmp_path / "cache").write_text("a file")
    compilation.keep_compiled(str(tmp_path / "cache" / "mine") if source == "flag" else None)
    note = capsys.readouterr().err
    assert note.startswith(f"note: compiled programs cannot be kept in {tmp_path / 'cache'}")
    assert "Not a directory" in note
    assert "--compilation_cache=off" in note
    assert not config.jax_enable_compilation_cache


def test_a_read_only_folder_is_read(config, monkeypatch, tmp_path, capsys):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(compilation.tempfile, "TemporaryFile", refuse)
    compilation.keep_compiled(str(tmp_path))
    assert "cannot be written (Permission denied)" in capsys.readouterr().err
    assert config.jax_enable_compilation_cache
    assert config.jax_compilation_cache_dir == str(tmp_path)
    assert config.jax_persistent_cache_min_compile_time_secs == float("inf")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_programs_of_another_user_are_not_loaded(config, monkeypatch, capsys):
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    compilation.keep_compiled(None)
    assert "belongs to another user" in capsys.readouterr().err
    assert not config.jax_enable_compilation_cache


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_a_folder_that_others_can_write_to_is_tightened(config, capsys):
    folder = compilation.default_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o775)
    compilation.keep_compiled(None)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"other users could write to {folder}; now" in capsys.readouterr().err
    compilation.keep_compiled(None)
    assert not capsys.readouterr().err


def test_a_folder_that_stays_locked_is_not_waited_for(config, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "_PATIENCE_S", 0.05)
    folder = compilation.default_folder()
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / compilation._LOCK):
        compilation.keep_compiled(None)
    assert "could not be acquired" in capsys.readouterr().err
    assert not config.jax_enable_compilation_cache


def test_entries_that_a_killed_process_left_are_removed(config):
    folder = compilation.default_folder()
    folder.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "cut-cache"):
        (folder / name).write_text("content")
    compilation.keep_compiled(None)
    names = {path.name for path in folder.iterdir()} - {compilation._LOCK}
    assert names == {"whole-cache", "whole-atime"}


def test_no_home_folder_is_a_note(config, monkeypatch, capsys):
    def fail():
        raise places.ConfigError("no home folder is known.")

    monkeypatch.setattr(places, "cache_dir", fail)
    compilation.keep_compiled(None)
    assert "note: compiled programs are not kept: no home folder" in capsys.readouterr().err
    assert config.jax_compilation_cache_dir is None
