"""Flags, their errors and `--help`."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE_S
from forked_commands import command as forked_command
from forked_commands import sinusoid_command

import experiments.__main__ as commands

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments):
    line = [sys.executable, "-m", "experiments.sinusoid", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


class TestCommandLine:
    def test_help_reads_well(self):
        done = command("--help")
        assert done.returncode == 0
        assert "python -m experiments.sinusoid --workdir=DIR --preset=quick" in done.stdout
        assert str(ROOT) not in done.stdout
        headings = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)
        assert headings == [
            "the run",
            "settings of the experiment",
            "--mode=adapt",
            "several hosts",
        ]
        text = " ".join(done.stdout.split())
        assert "--inner_lr=0.001 Inner step size alpha. Allowed: above 0" in text
        assert "--methods=maml,first" in text
        assert "Allowed: any of maml, first_order" in text
        assert "eval_points=100: Grid points of the test error." in text
        assert "--mode=train" in text
        assert "--data_dir" not in text  # sinusoids are drawn

    def test_help_lists_flags_that_have_an_effect(self, tmp_path):
        ended = forked_command("navigation", tmp_path, "--help")
        assert "--mode" not in ended.text
        assert "--data_dir" not in ended.text
        ended = forked_command("omniglot", tmp_path, "--help")
        assert "--data_dir" in ended.text
        assert "--classify" in ended.text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--workdir=x", "--iner_lr=1"], "error: no flag --iner_lr; did you mean --inner_lr?"),
            (["--workdir=x", "--nonsense"], "error: no flag --nonsense; --help lists the flags."),
            (["--workdir"], "error: --workdir needs a value: --workdir=VALUE."),
            (["--meta_steps", "1e3"], "--meta_steps must be an integer; received '1e3'."),
            (["--checkpoint_every_s=-1"], "_s must be a non-negative number; received '-1'."),
            (["--seed=-1"], "--seed must be an integer from 0 to 999999; received '-1'."),
            (["--distributed=maybe"], "--distributed must be true or false; received 'maybe'."),
            (["--nodistributed=1"], "--nodistributed=1 does not take an argument"),
            (["--cpu_devices=2000"], "--cpu_devices must be an integer from 1 to 1024"),
            ([], "--workdir=DIR is required"),
            (["--workdir=x", "--num_tasks=-3"], "--num_tasks must be 1 or more; received -3"),
            (["--workdir=x", "--preset=fast"], "--preset must be one of paper, paper_text, quick"),
            (["--workdir=x", "--mode=fly"], "--mode must be one of train, adapt"),
            (["--workdir=x", "--num_shots=5,a"], "--num_shots must be whole numbers separated by"),
            (["--workdir=x", "--eval_points=7"], "is not a flag; use --set=eval_points=VALUE"),
            (["--workdir=x", "--set=eval_points=1"], "--set=eval_points must be 2 or more"),
            (["--workdir=x", "--set=eval_points=x"], "--set=eval_points must be an integer"),
            (["--workdir=x", "--set=inner_lr=1"], "received 'inner_lr=1'. Use --inner_lr=VALUE"),
            (["--workdir=x", "--inner_lr=0.1,b"], "--inner_lr must be numbers separated by commas"),
            (["--workdir=x", "--inner_lr=0.1,-1"], "--inner_lr must be above 0; received -1.0"),
            (["--workdir=x", "--inner_lr=0.1,0.1"], "--inner_lr must name each value once"),
            (["--workdir=x", "extra"], "unexpected argument 'extra'"),
            (["--workdir=x", "--checkpoint_every_s=nan"], "--checkpoint_every_s must be a finite"),
            (["--workdir=~no_such_user/x"], "--workdir=~no_such_user/x: no home folder is known"),
            (["--workdir=x", "--data_dir=~no_such_user"], "--data_dir=~no_such_user: no home"),
            (["--workdir=x", "--seed=999999", "--num_seeds=2"], "the last would be 1000000"),
        ],
    )
    def test_refusals(self, arguments, message, tmp_path):
        ended = sinusoid_command(tmp_path, *arguments)
        assert ended.returncode == 2
        assert message in ended.text
        assert "Traceback" not in ended.text

    def test_settings_that_a_mode_ignores_are_named(self, tmp_path):
        given = ["--mode=adapt", "--inner_lr=0.5", "--seed=3", "--methods=maml", "--meta_lr=1"]
        given += ["--set=eval_points=9"]
        ended = sinusoid_command(tmp_path, "--workdir=x", *given)
        assert ended.text.startswith(
            "note: --mode=adapt uses the settings of the run; ignored: --seed, --methods, "
            "--meta_lr, --set=eval_points\n"
        )
        assert "error: no run at x" in ended.text
        ended = sinusoid_command(tmp_path, "--workdir=x", "--mode=adapt", "--inner_lr=0.1")
        assert "ignored" not in ended.text
        for value, message in (("0", "must be above 0"), ("1,2", "takes one value with --mode")):
            ended = sinusoid_command(tmp_path, *given[:1], "--workdir=x", f"--inner_lr={value}")
            assert f"error: --inner_lr {message}" in ended.text

    def test_missing_devices(self, tmp_path):
        code = "from experiments import sinusoid; from experiments.core.command import main; "
        code += "main(sinusoid.EXPERIMENT)"
        done = subprocess.run(
            [sys.executable, "-c", code, f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, "JAX_PLATFORMS": "no_such_kind"},
        )
        assert done.returncode == 2
        assert "error: JAX cannot start its devices (JAX_PLATFORMS='no_such_kind')" in done.stderr
        assert "Traceback" not in done.stderr


class TestOtherCommands:
    def test_an_unknown_one(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["maml-jax", "sinus"])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert ended.value.code == 2
        assert "error: no command 'sinus'; choose one of sinusoid," in capsys.readouterr().err

    def test_stopping_while_modules_are_imported(self, monkeypatch, capsys):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(sys, "argv", ["maml-jax", "sinusoid"])
        monkeypatch.setattr(runpy, "run_module", stop)
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert ended.value.code == 130
        assert capsys.readouterr().err == "\nstopped.\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "error: name one or more directories of runs."),
            (["--figur=a.png"], "error: no flag --figur; did you mean --figure?"),
        ],
    )
    def test_refusals_of_report(self, arguments, message):
        line = [sys.executable, "-m", "experiments.report", *arguments]
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
        assert (ended.returncode, ended.stderr) == (2, f"{message}\n")
