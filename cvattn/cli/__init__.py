"""The commands: ``cvattn predict ...`` or ``python -m cvattn predict ...``."""

import importlib
import os
import sys
from collections.abc import Sequence

from cvattn.cli.common import CommandError
from cvattn.system import did_you_mean, is_offline, printable

# One module for each, with ``run(arguments) -> exit code``; imported when it is called for.
COMMANDS = {
    "train": "a network, as train.py does in the repository; --help lists the choices",
    "predict": "classes and probabilities for image files",
    "evaluate": "accuracy by class, confusion matrix and calibration on a data set",
    "explore": "a page that shows what each position of an image looks at",
    "sample": "images made by a network that was trained to, or completed by it",
    "judge": "how near made images are to those of the data, and whether they are copies",
    "cache": "decoded images that are kept on this machine, and removing them",
    "cost": "which way each attention takes and why, memory and operations",
    "export": "ONNX or torch's exported program, checked against the network",
    "compare": "train arms of a question with equal seeds: how far are they apart?",
    "verify": "train a recipe again: does it give what it promises?",
}
USAGE = "\n".join(
    (
        "usage: cvattn COMMAND ...",
        "",
        *(f"  {name:<10}{what}" for name, what in COMMANDS.items()),
        "",
        "cvattn COMMAND --help says more.",
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0; 1 if something could not be done; 2 if the command line, the checkpoint
        or the data are wrong, after one line on stderr; 130 after Ctrl-C.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    try:
        if name in ("-h", "--help", "help"):
            print(USAGE)
            return 0
        if name == "--version":
            import cvattn

            print(f"cvattn {cvattn.__version__}")
            return 0
        if not name:
            print(USAGE, file=sys.stderr)
            return 2
        try:
            is_offline()
        except ValueError as error:
            raise CommandError(str(error)) from None
        if name not in COMMANDS:
            raise CommandError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}")
        return importlib.import_module(f"cvattn.cli.{name}").run(rest)
    except CommandError as error:
        print(f"error: {printable(str(error), lines=True)}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cvattn ... | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as done:  # argparse, after --help
        return done.code if isinstance(done.code, int) else 0
    except ValueError as error:
        from cvattn.inference import InferenceError, NotFiniteError  # help needs no image library

        if not isinstance(error, InferenceError):
            raise
        print(f"error: {printable(str(error), lines=True)}", file=sys.stderr)
        return 1 if isinstance(error, NotFiniteError) else 2
