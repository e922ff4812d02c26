"""The command group: help, exit codes, messages."""

import errno
import subprocess
import sys
from pathlib import Path

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
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1, "/data/x: No space left on device."),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "Disk quota exceeded."),
        (RuntimeError("can't start new thread"), 1, "The system starts no more threads or processes"),
        (MemoryError(), 1, "Out of memory."),
        (RuntimeError("boom"), 1, "Unexpected RuntimeError: boom"),
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
    said = capsys.readouterr().err
    assert message in said
    assert ("defect" in said) == (message.startswith("Unexpected"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("cube", "info", "--help")])
def test_output_that_cannot_be_written_is_a_failure_in_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "flairhub", *arguments]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_S)
        assert (result.returncode, result.stderr) == (
            1,
            "Standard output cannot be written: No space left on device.\n",
        )
        silenced = subprocess.run([*command[:3], "cube", "info", "/nowhere"], stderr=full, timeout=HANG_S)
    assert silenced.returncode == 1
