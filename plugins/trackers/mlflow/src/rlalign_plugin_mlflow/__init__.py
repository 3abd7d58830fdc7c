"""MLflow: what a run is, how it comes on, and how it ends."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rlalign import Tracked, Tracker

__all__ = ["MLflow"]

_ID = "rlalign.id"
_AT_ONCE = 100
"""Parameters that MLflow takes in one call."""
_LONGEST = 500
"""Characters of a parameter's value that every server takes."""


class MLflow(Tracker):
    """Sends a run's figures to MLflow: a server, or a file of your own."""

    class Config(Tracker.Config):
        """Options of `mlflow`."""

        uri: str | None = Field(
            None,
            description="a server, or a store such as `sqlite:///mlflow.db`; null: as MLFLOW_TRACKING_URI says, else "
            "`mlflow.db` beside the run's folder",
        )

    config: Config
    requires = "mlflow"
    keys = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")

    def begin(self, run: Tracked) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        runs = Path(run.folder).parent
        uri = self.config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{runs / 'mlflow.db'}")
        experiment = self._experiment(None if uri else (runs / "mlflow-artifacts").as_uri())
        found = self._client.search_runs([experiment], f"tags.`{_ID}` = '{run.id}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {_ID: run.id, **dict.fromkeys(self.config.tags, "true")}
        self._run = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        said = [Param(_key(key), str(value)[:_LONGEST]) for key, value in _leaves(run.pipeline)]
        for i in range(0, len(said), _AT_ONCE):
            self._client.log_batch(self._run, params=said[i : i + _AT_ONCE])
        self._client.log_dict(self._run, dict(run.pipeline), "pipeline.yaml")

    def _experiment(self, files: str | None) -> str:
        known = self._client.get_experiment_by_name(self.config.project)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(self.config.project, artifact_location=files))

    def log(self, figures: Mapping[str, float], tick: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run, metrics=[Metric(_key(key), float(value), now, tick) for key, value in figures.items()]
        )

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], tick: int) -> None:
        self._client.log_dict(self._run, {"columns": columns, "data": rows}, f"samples/{tick:07d}.json")

    def end(self, error: str | None) -> None:
        self._client.set_tag(self._run, "rlalign.ended", error or "finished")
        self._client.set_terminated(self._run, status="FINISHED" if error is None else "FAILED")


def _key(name: str) -> str:
    """The name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """`train.lr` and its value, and so on."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{place}.{i}")
    else:
        yield place, value
