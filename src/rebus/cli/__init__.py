"""The command line: one verb a stage. Verbs import their stage when they run, so `rebus --help` answers at once."""

import sys
from typing import Annotated, Any

import typer

from rebus.cli import data, looking, models
from rebus.clock import clocked
from rebus.errors import Stopped, explain
from rebus.log import console, say

app = typer.Typer(
    help="Build your own vision-language model: score, select, pack, train, evaluate, talk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (data, models, looking):
    app.add_typer(group.verbs)

UsageError: type[Any] = typer.BadParameter.__bases__[0]  # click's own, or the copy of click inside newer typers

STOPPED = 130
"""Exit status of a command that Ctrl-C ended."""


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb; `main` reads --debug itself, so that it also holds for errors in the command line."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a verb. Exit status: 0 done, 1 an error that one message explains, 2 wrong usage, 75 a stalled run that its
    watchdog ended, 130 Ctrl-C, 143 SIGTERM (128 and the signal's number)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if debug:  # accepted after the verb too, where people add it
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        with clocked(" ".join(arguments)):
            status = app(arguments, prog_name="rebus", standalone_mode=False)
    except UsageError as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except Stopped as stopped:
        if str(stopped):
            say(str(stopped))
        sys.exit(stopped.status)
    except Exception as error:
        if debug:
            raise
        console.print(explain(error), style="red", highlight=False, markup=False, soft_wrap=True)
        status = 1
    if status == STOPPED:  # some versions of typer return it, others raise
        say("\nstopped. Run the same command again: finished work is kept, the rest goes on.")
    sys.exit(status if isinstance(status, int) else 0)
