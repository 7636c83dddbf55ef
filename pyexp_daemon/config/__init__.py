"""The configuration file: YAML to frozen, validated sections. Here are the classes that PyExperimenter has."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyexp_daemon.config.pyexperimenter import (
        Cfg,
        CodeCarbonCfg,
        CustomCfg,
        DatabaseCfg,
        Keyfield,
        PyExperimenterCfg,
    )

__all__ = ["Cfg", "CodeCarbonCfg", "CustomCfg", "DatabaseCfg", "Keyfield", "PyExperimenterCfg"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: whoever imports a module of this package need not have them."""
    if name not in __all__:
        raise AttributeError(name)
    from pyexp_daemon.config import pyexperimenter

    return getattr(pyexperimenter, name)
