"""The command line as a whole."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvcached import __version__, hooks
from kvcached.cli import doctor, kvtop, listing, orders, removal, serving
from kvcached.cli.outcome import CommandError, Exit, say, warn

if TYPE_CHECKING:
    from collections.abc import Sequence


def _version(wanted: bool) -> None:
    if wanted:
        say(f"kvctl {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The application, with the commands that engine packages bring."""
    app = typer.Typer(
        name="kvctl",
        help="See and steer who holds how much of a device.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _everywhere(
        directory: Annotated[
            str,
            typer.Option(
                "--dir",
                envvar="KVCACHED_SHM_DIR",
                help="Directory of the ledgers; left out: /dev/shm/kvcached-UID.",
                show_default=False,
            ),
        ] = "",
        version: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        pass

    for group in (listing, kvtop, orders, removal, doctor, serving):
        group.register(app)
    _let_packages_add(app)
    return app


def _let_packages_add(app: typer.Typer) -> None:
    """Calls each package alone: one that fails takes nobody's commands along."""
    manager = hooks.manager()
    plugins = [found.plugin for found in manager.hook.kvcached_cli.get_hookimpls()]
    for plugin in plugins:
        others = [other for other in plugins if other is not plugin]
        try:
            manager.subset_hook_caller("kvcached_cli", others)(app=app)
        except Exception as error:
            warn(f"the commands of {manager.get_name(plugin)} are missing: {error}")


def run(arguments: Sequence[str] | None) -> int:
    """Runs one command and returns its exit code; errors become one line."""
    try:
        build()(args=None if arguments is None else list(arguments), prog_name="kvctl")
    except CommandError as error:
        warn(str(error))
        return error.code
    except BrokenPipeError:
        # Who reads has seen enough; the interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Exit.OK
    return Exit.OK
