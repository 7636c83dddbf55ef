"""The parameter space: pure functions from declared values to rows and their fingerprints.

What is offered to users of Python: variables, and the experiments that a configuration of them stands for.
"""

from pyexp_daemon.space.samples import Choice, Distribution, Integers, LogUniform, Uniform, sample
from pyexp_daemon.space.sweep import count, expand
from pyexp_daemon.space.variables import Iterable, Linear, LogLinear, Match, Repeat, Variable

__all__ = [
    "Choice",
    "Distribution",
    "Integers",
    "Iterable",
    "Linear",
    "LogLinear",
    "LogUniform",
    "Match",
    "Repeat",
    "Uniform",
    "Variable",
    "count",
    "expand",
    "sample",
]
