"""The `flairhub` command: the only place with exit codes and terminal output."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

import click

from flairhub.errors import FlairhubError
from flairhub.version import __version__

__all__ = ["cli", "main"]

_COMMANDS = {
    "ingest": "Convert FLAIR-HUB files to a Zarr cube.",
    "train": "Train, predict and score as the configuration's tasks say.",
    "evaluate": "Score predictions that exist.",
    "report": "Show the scores of a run as one HTML file.",
    "zonal": "Map a zone (whole rasters) with a model.",
    "check": "Look at a zonal configuration before running it.",
    "cube": "Look at a cube.",
    "model": "Look at and convert model weights.",
    "demo": "Run the whole chain on a small made data set.",
}


class _LazyGroup(click.Group):
    """Loads a command's module only when that command is used, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return import_module(f"flairhub.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flairhub")
@click.option("--verbose", "-v", is_flag=True, help="Show the library's log messages.")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool, debug: bool) -> None:
    """Multi-sensor Earth observation data to land-cover and crop maps.

    \b
    Try it on a small made data set (two to three minutes):
      flairhub demo
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        force=True,
    )
    if not verbose:
        # Its retries would bury our own message about weights that cannot be fetched.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    ctx.obj = {"debug": debug}


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 usage or configuration, 130 interrupted."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or bool(os.environ.get("FLAIRHUB_DEBUG"))
    try:
        cli.main(args=arguments, prog_name="flairhub", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        if args is None:
            # The process ends: a second Ctrl-C would find an interpreter that is shutting down.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # click turns Ctrl-C into an Abort; a command may have said how to continue.
        how = [str(one) for one in (error, error.__cause__) if isinstance(one, KeyboardInterrupt) and one.args]
        _say(" ".join(["Interrupted.", *how]))
        sys.exit(130)
    except FlairhubError as error:
        if debug:
            raise
        _say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`flairhub cube info ... | head`).
        _discard_output()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _say(
            _refusal_of_the_system(error)
            or f"Unexpected {type(error).__name__}: {error}\n"
            "This looks like a defect of flairhub. Run again with `flairhub --debug ...` for the traceback."
        )
        sys.exit(1)


def _refusal_of_the_system(error: Exception) -> str:
    """One line for what the system refuses, which is no defect of ours; empty for any other error."""
    if isinstance(error, MemoryError):
        return "Out of memory. Use fewer workers, smaller batches or smaller blocks."
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "The system starts no more threads or processes (see `ulimit -u`). Use fewer workers."
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror or error}."
    try:
        # What failed may have been this: a full disk that the output is redirected to.
        click.echo()
    except OSError as failure:
        _discard_output()
        return f"Standard output cannot be written: {failure.strerror or failure}."
    return f"{error.strerror or error}."


def _discard_output() -> None:
    """Send what is left for standard output nowhere: the interpreter would fail on it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    """Write a line to standard error, if there is one: the exit code counts without it."""
    with suppress(OSError):
        click.echo(message, err=True)
