"""The ``dptrain`` command: finds the recipe, runs it, and says no in one line.

    dptrain COMMAND key=value ...

Exit codes: 0 done, 2 input refused, 3 budget refused, 4 claim rejected, 130 interrupted, 1 a defect of dptrain.
Nothing heavier than Hydra is imported before a recipe asks for it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from dptrain import __version__
from dptrain.errors import ConfigError, DptrainError, one_line, suggest, unwritable

COMMANDS = {
    "train": "train a model privately (or a baseline: privacy=off)",
    "finetune": "train a part of a pretrained model privately, or go on from a release bundle",
    "plan": "dry run: noise, steps, epsilon, cost; advise=true: which to choose; reads no private row",
    "bench": "what a private step of your model costs, engine by engine; reads no private row",
    "conform": "whether engine, model and loop do what the plan promises; reads no private row",
    "audit": "membership-inference check of a finished run",
    "certify": "how often the audit's own bounds are above the truth, by simulation",
    "report": "one page of a finished run, or of a budget account (dataset=NAME)",
    "budget": "the budget account of a data set: show, create, limit, freeze, forecast, export, verify",
    "data": "the quarantine of data sets: quarantine, release, show",
    "keys": "keys of sealed files: show, rotate; keys of signatures: revoke",
    "compare": "runs side by side: epsilon, spend, accuracy, cost, and a plot",
    "verify": "check what a checkpoint promises: numbers, signature, files, ledger head",
    "export": "a verified bundle for transformers, peft, MLflow, ONNX or as safetensors, its statement inside",
    "convert": "weights of others (.bin, .pth) as safetensors; no code of the file is run",
    "generate": "continuations of a text by a verified language model",
    "register": "a verified bundle as a version of a registered MLflow model",
    "sync": "send the tracker what it missed of a run",
    "configs": "list and copy the shipped configs",
    "completion": 'shell completion: eval "$(dptrain completion bash)"',
}

HELP = f"""dptrain {__version__}: differential-privacy training whose label is true, checked, and adds up.

usage: dptrain COMMAND [key=value ...]

{chr(10).join(f"  {name:<12}{text}" for name, text in COMMANDS.items())}

first steps
  dptrain train experiment=quickstart            handwritten digits at epsilon 3
  dptrain plan data=fashion_mnist privacy.epsilon=1   what a budget buys, before it is spent
  dptrain audit run=runs/RUN                     attack the checkpoint
  dptrain report run=runs/RUN                    read it

  dptrain train --help                           every group and key
  dptrain train data=adult model=linear privacy.epsilon=1,3,8 --multirun   a sweep
  dptrain train --config-dir conf experiment=mine   your own configs; imports=[my_file] your own code

exit codes: 0 done, 2 input refused, 3 budget refused, 4 claim rejected
"""


def main(arguments: list[str] | None = None) -> None:
    """Console entry point; always ends the process with an exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; user errors become one line on stderr."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    return guarded(command, rest)


def guarded(command: str, rest: list[str]) -> int:
    """One command behind the error contract. ``python recipes/COMMAND.py`` comes through here as well."""
    from dptrain.compose import readable

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over; they are phrased here
    try:
        if command not in COMMANDS:
            raise ConfigError("command", command, "is not a command", suggest(command, COMMANDS))
        recipe(command).main(rest)
    except DptrainError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("dptrain: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has had enough: ``| head``
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = readable(error)  # first: some of Hydra's own errors call themselves OSError
        if isinstance(known, DptrainError):
            return _refuse(known)
        if isinstance(error, OSError):
            return _refuse(unwritable(error))
        raise
    return 0


def _refuse(error: DptrainError) -> int:
    print(f"dptrain: error: {one_line(str(error))}", file=sys.stderr)
    return error.exit_code


def recipe(command: str) -> ModuleType:
    """The recipe's module: inside the installed package, else from ``recipes/`` beside it in a checkout.

    It is filed in ``sys.modules`` under one name either way, so that sweep workers find it.
    """
    name = f"dptrain._recipes.{command}"
    if name in sys.modules:
        return sys.modules[name]
    package = Path(__file__).resolve().parent
    folder = package / "_recipes" if (package / "_recipes").is_dir() else package.parent / "recipes"
    spec = importlib.util.spec_from_file_location(name, folder / f"{command}.py")
    if spec is None or spec.loader is None or not (folder / f"{command}.py").is_file():
        raise ConfigError("command", command, f"its recipe is missing from {folder}", "install dptrain again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
