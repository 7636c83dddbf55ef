"""Print test accuracy by data set and kernel. The experiment table is a plain one: any SQL does."""

import sqlite3
import statistics
from contextlib import closing
from pathlib import Path

DATABASE = Path(__file__).resolve().parent / "demo.db"
KERNELS = ("linear", "poly", "rbf", "sigmoid")


def main() -> None:
    """One line per data set, mean ± standard deviation over the seeds."""
    with closing(sqlite3.connect(f"{DATABASE.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT dataset, kernel, test_accuracy FROM svm WHERE status = 'done' ORDER BY ID")
        cells: dict[str, dict[str, list[float]]] = {}
        for dataset, kernel, accuracy in rows:
            cells.setdefault(dataset, {}).setdefault(kernel, []).append(accuracy)

    print("test accuracy, mean ± standard deviation over the seeds\n")
    print(f"{'data set':<16}" + "".join(f"{kernel:<16}" for kernel in KERNELS).rstrip())
    for dataset, by_kernel in cells.items():
        print(f"{dataset:<16}" + "".join(f"{summary(by_kernel.get(kernel, [])):<16}" for kernel in KERNELS).rstrip())


def summary(values: list[float]) -> str:
    """Like 0.953 ± 0.012, or -- when nothing is done yet."""
    if not values:
        return "--"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
