"""Tables as pandas has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    import pandas


def frame(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pandas.DataFrame:
    """A DataFrame with the types that `pandas.read_sql` finds.

    Raises:
        UsageError: pandas is not installed.
    """
    return library().DataFrame.from_records(rows, columns=list(columns), coerce_float=True)


def library() -> Any:
    """The module pandas.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise exceptions.UsageError("pandas is not installed", hint="pip install 'pyexp-daemon[export]'") from error
    return pandas
