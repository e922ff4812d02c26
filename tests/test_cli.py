"""The command group: help, exit codes, messages."""

import subprocess
import sys

import pytest

from flairhub import __version__, cli, errors
from tests.helpers.waiting import HANG_S


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flairhub", *args], capture_output=True, text=True, timeout=HANG_S)


def test_version_and_help() -> None:
    assert __version__ in run("--version").stdout
    help_text = run("--help").stdout
    for name in cli._COMMANDS:
        assert f"  {name} " in help_text


@pytest.mark.parametrize("name", list(cli._COMMANDS))
def test_each_command_has_help_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.returncode == 0
    assert f"flairhub {name}" in result.stdout.split("Options:")[0].split("\n", 2)[2]


def test_usage_errors_exit_2() -> None:
    result = run("ingset")
    assert result.returncode == 2
    assert "No such command 'ingset'" in result.stderr
    assert run("ingest", "--no-such-option").returncode == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.DataError("bad file"), 1, "DataError: bad file"),
        (errors.ConfigError("c.yaml", ["a: wrong"]), 2, "ConfigError: c.yaml: 1 problem"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (ZeroDivisionError("boom"), 1, "Unexpected ZeroDivisionError: boom"),
    ],
)
def test_exceptions_become_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as exit_info:
        cli.main([])
    assert exit_info.value.code == code
    assert message in capsys.readouterr().err
