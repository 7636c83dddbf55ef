"""The experiment of the demo: cross-validate one support vector machine on one data set."""

import time
from typing import Any

from sklearn import datasets
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def run(keyfields: dict[str, Any], result_processor: Any, custom_fields: dict[str, Any]) -> None:
    """Called by a daemon with one row's parameters; what it passes to `process_results` is stored in that row."""
    began = time.perf_counter()
    features, target = getattr(datasets, f"load_{keyfields['dataset']}")(return_X_y=True)
    model = make_pipeline(StandardScaler(), SVC(kernel=keyfields["kernel"], random_state=keyfields["seed"]))
    folds = StratifiedKFold(n_splits=custom_fields["folds"], shuffle=True, random_state=keyfields["seed"])
    scores = cross_validate(
        model, features, target, cv=folds, scoring=["accuracy", "f1_macro"], return_train_score=True
    )
    result_processor.process_results(
        {
            "train_accuracy": float(scores["train_accuracy"].mean()),
            "test_accuracy": float(scores["test_accuracy"].mean()),
            "test_f1": float(scores["test_f1_macro"].mean()),
            "seconds": round(time.perf_counter() - began, 3),
        }
    )
