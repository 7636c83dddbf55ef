"""The experiments: a daemon calls `run` once for every row of the table."""

import random
import time
from typing import Any


def run(keyfields: dict[str, Any], result_processor: Any, custom_fields: dict[str, Any]) -> None:
    """One experiment: a random walk that stands in for a training.

    Args:
        keyfields: the parameters of this row.
        result_processor: stores results, log rows and progress.
        custom_fields: the section `Custom` of the configuration.
    """
    began = time.monotonic()
    chance = random.Random(keyfields["seed"])
    epochs = custom_fields["epochs"]
    loss = 1.0
    for epoch in range(epochs):
        loss *= 1 - keyfields["learning_rate"] * chance.random()
        result_processor.process_logs({"epochs": {"epoch": epoch, "loss": loss}})
        result_processor.progress((epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}")
    result_processor.process_results({"accuracy": 1 - loss, "seconds": time.monotonic() - began})
