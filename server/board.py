"""TensorBoard events of a run: one writer for the whole federation, one for each hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

_WHOLE = "_global"  # no hospital's name begins so, and `global` may be one


class Board:
    """Writes `tensorboard/_global` and `tensorboard/SITE`; events of rounds that are run again are purged."""

    def __init__(self, folder: Path, *, purge_after_round: int) -> None:
        self._folder = folder / "tensorboard"
        self._purge_step = max(0, purge_after_round + 1)
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, record: dict[str, Any]) -> None:
        """Write one committed round."""
        if record["kind"] == "describe":
            return
        whole = {"loss": record["loss"], "seconds": record["seconds"]} | record["metrics"]
        whole |= {"bytes/sent": record["bytes_sent"], "bytes/received": record["bytes_received"]}
        whole["privacy/epsilon"] = record.get("privacy", {}).get("epsilon")
        whole["hospitals"] = sum(entry["status"] == "admitted" for entry in record["hospitals"])
        self._scalars(_WHOLE, record, whole)
        for entry in record["hospitals"]:
            own = {"loss": entry["loss"], "seconds": entry["seconds"], "update_norm": entry.get("update_norm")}
            for model, evaluation in entry.get("evaluations", {}).items():
                mean = evaluation["mean_auroc"]
                own[f"auroc/{model}/mean"] = mean["value"] if mean else None
                for finding, cell in evaluation["findings"].items():
                    own[f"auroc/{model}/{finding}"] = cell["auroc"]["value"] if cell["auroc"] else None
            self._scalars(str(entry["site"]), record, own | entry["metrics"])

    def close(self) -> None:
        """Flush and close every writer."""
        for writer in self._writers.values():
            writer.close()

    def _scalars(self, name: str, record: dict[str, Any], values: dict[str, float | None]) -> None:
        if name not in self._writers:
            self._writers[name] = SummaryWriter(
                str(self._folder / name), purge_step=self._purge_step or None, flush_secs=5
            )
        for key, value in values.items():
            if value is not None:
                self._writers[name].add_scalar(f"{record['kind']}/{key}", value, record["round"])
