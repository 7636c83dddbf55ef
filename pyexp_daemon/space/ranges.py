"""Ranges of numbers, exact: 0, 1, 0.1 gives the literal floats 0.0, 0.1, … 0.9."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from pyexp_daemon.space.variables import Number, Variable, is_finite

MOST = 10**8
"""More values than this in one range are a slip of the pen: every one is held in memory by `fill`."""

_DIGITS = 700
"""Enough for the sum of any two floats written out; the default 28 digits would round."""


@dataclass(frozen=True, slots=True)
class Range(Variable):
    """The numbers from `start` up to `stop`, which is left out, in steps of `step`; build it with `range_values`.

    Counted without being expanded. All whole when the three numbers are whole, else all floats.
    """

    start: Number
    stop: Number
    step: Number = 1

    def __len__(self) -> int:
        return self.count_exactly()

    def count_exactly(self) -> int:
        """How many numbers there are, also where that is more than `len` can say."""
        with localcontext(prec=_DIGITS):
            return max(0, math.ceil((_decimal(self.stop) - _decimal(self.start)) / _decimal(self.step)))

    def _at(self, index: int) -> Number:
        if self._is_whole:
            return int(self.start) + index * int(self.step)
        with localcontext(prec=_DIGITS):
            return float(_decimal(self.start) + index * _decimal(self.step))

    @property
    def _is_whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.start, self.stop, self.step))


def range_values(start: Any, stop: Any, step: Any = 1) -> Range:
    """The numbers from `start` up to `stop`, which is left out; `step` may be negative.

    Raises:
        ValueError: one of the three is no finite number, the step is 0, or there is no number in the range.
    """
    for name, number in (("start", start), ("stop", stop), ("step", step)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} is not a number: {number!r}")
        if not is_finite(number):
            raise ValueError(f"{name} is not finite: {number!r}")
    if step == 0:
        raise ValueError("step is 0")
    numbers = Range(start, stop, step)
    if numbers.count_exactly() > MOST:
        raise ValueError(f"more than {MOST} values from {start} to {stop} in steps of {step}")
    if not len(numbers):
        raise ValueError(f"no values from {start} to {stop} in steps of {step}; stop is left out")
    return numbers


def _decimal(number: Number) -> Decimal:
    """The number as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    return Decimal(repr(number))
