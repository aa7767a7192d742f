"""Names a config may use, and the functions behind them.

A config names things (``model=mlp``, ``data=digits``); it never names code. A user's own
model, data set, loss, metric or feature map is a Python file named on the command line
(``imports=[my_file]``) whose functions register themselves:

    from dptrain.registry import models

    @models.register("two_layers")
    def two_layers(input_shape, num_outputs, hidden=64):
        ...

A config found inside a checkpoint can therefore never run code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dptrain.errors import ConfigError, suggest

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Registry:
    """One table of names.

    Args:
        kind: what the names stand for; errors speak of ``kind=NAME``.
        home: the package whose import registers what dptrain ships, imported on first use.
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind = kind
        self._home = home
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Decorator: files a builder under ``name``. A name taken by another function is refused."""

        def file(builder: Builder) -> Builder:
            held = self._builders.get(name)
            if held is not None and _origin(held) != _origin(builder):
                raise ConfigError(self.kind, name, f"the name is taken by {_origin(held)}", "register another name")
            self._builders[name] = builder
            return builder

        return file

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        importlib.import_module(self._home)
        return sorted(self._builders)

    def resolve(self, name: str) -> Callable[..., Any]:
        """The builder filed under ``name``; raises ConfigError with a suggestion otherwise."""
        if name not in self.names():
            raise ConfigError(self.kind, name, "no such name is registered", suggest(name, self._builders))
        return self._builders[name]

    def build(self, name: str, *given: Any, options: Mapping[str, Any] | None = None) -> Any:
        """Calls the builder with ``options`` as keywords, unknown ones refused by name."""
        builder = self.resolve(name)
        options = dict(options or {})
        accepted = _keywords(builder)
        for key in options:
            if accepted is not None and key not in accepted:
                raise ConfigError(
                    f"{self.kind}.options.{key}",
                    options[key],
                    f"{self.kind} '{name}' has no such option",
                    suggest(key, accepted),
                )
        return builder(*given, **options)


def _origin(builder: Callable[..., Any]) -> str:
    return f"{inspect.getsourcefile(builder) or builder.__module__}:{builder.__qualname__}"


def _keywords(builder: Callable[..., Any]) -> list[str] | None:
    """Names that may be passed as options; None where the builder takes any (``**options``)."""
    parameters = inspect.signature(builder).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.default is not p.empty]


sources = Registry("data", home="dptrain.data")
models = Registry("model", home="dptrain.models")
features = Registry("features", home="dptrain.models")
losses = Registry("loss", home="dptrain.training")
metrics = Registry("metric", home="dptrain.training")
optimizers = Registry("optimizer", home="dptrain.training")
engines = Registry("clipping.engine", home="dptrain.gradients")


def load_user_files(imports: Iterable[str]) -> None:
    """Runs the files or modules that the user named with ``imports=[...]``.

    A name ending in ``.py``, or one that is a file beside the working directory, is loaded from
    that file; anything else is imported as a module. Only names from the command line or the
    user's own config reach this function.
    """
    for name in imports:
        path = Path(name if name.endswith(".py") else f"{name}.py").expanduser().resolve()
        if path.is_file():
            _load_file(path)
        elif name.endswith(".py"):
            raise ConfigError("imports", name, "no such file", "name a Python file or an importable module")
        else:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise ConfigError(
                    "imports", name, f"cannot be imported ({error})", "name a Python file or an importable module"
                ) from error


def _load_file(path: Path) -> None:
    alias = f"dptrain_user_{path.stem}"
    held = sys.modules.get(alias)
    if held is not None and getattr(held, "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        del sys.modules[alias]
        raise ConfigError(
            "imports", path.name, f"raised {type(error).__name__}: {error}", "run the file with python to see where"
        ) from error
