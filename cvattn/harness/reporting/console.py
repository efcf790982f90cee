"""How a run speaks to the shell: messages instead of tracebacks, exit codes, no noise."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from cvattn.harness.config.errors import STOPPED, ConfigError
from cvattn.system import is_offline, printable


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show what the user can fix as a message on stderr, and leave with 2 (or 1: stopped)."""
    try:
        try:
            is_offline()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        yield
    except (ConfigError, *STOPPED) as error:
        show_error(error)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


def plain_console(*, stderr: bool = False) -> Console:
    """A console for names of the user's: in ``[old]`` and ``:x:`` it sees no style and no emoji."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def show_error(error: Exception) -> None:
    console = plain_console(stderr=True)
    title = "error:" if isinstance(error, ConfigError) else "stopped:"
    console.print(title, style="bold red", end=" ")
    console.print(printable(str(error), lines=True), soft_wrap=True)


def quiet() -> None:
    """Lightning's notices about devices and tips; the panel says what matters."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What trainer.profiler finds is said as a notice, and was asked for.
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)
    # We log once an epoch, whatever the interval for steps is.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # A continued run writes where it began.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # Callbacks of a continued run may be chosen anew.
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")
    # Every process computes the same values of the same examples.
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist.*")
    # Of Lightning's own calls; as those of treespec below.
    warnings.filterwarnings("ignore", message=".*functional.all_gather is deprecated.*")
    # Between Lightning and recent torch, and fixed by neither yet.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
