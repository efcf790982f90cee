"""One job of a command line: a run of its own, or one of several."""

import math
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cvattn.harness.config.errors import STOPPED, ConfigError
from cvattn.harness.fit import fit
from cvattn.harness.reporting.console import plain_errors, show_error
from cvattn.harness.reporting.sweep_table import ERROR, show_table


def run_job(cfg: DictConfig) -> float | None:
    """:func:`fit` for ``train.py``: what the user can fix becomes a message.

    One job of a multirun that fails does not take the others with it. Its message goes into
    ``error.txt`` in its folder, and it has no accuracy: to a search that is a failed trial, and no
    value to learn from.
    Ctrl-C and SIGTERM end a multirun as a whole, with the table of what was finished.

    Raises:
        SystemExit: a run of its own failed; or, of any run, Ctrl-C and SIGTERM.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with plain_errors():
            return fit(cfg)
    try:
        best = fit(cfg)
        return None if math.isnan(best) else best
    except SystemExit:
        show_table(Path(HydraConfig.get().sweep.dir))
        raise
    except (ConfigError, *STOPPED) as error:
        show_error(error)
        message = str(error)
    except Exception as error:  # out of memory, say
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).write_text(message + "\n")
    return None
