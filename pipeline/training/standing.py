"""Where a run stands: JSON values, kept in every checkpoint."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Standing:
    """Updates made, the best epoch so far, and what was left out on the way."""

    step: int = 0
    validated: int = 0
    """Epochs that were validated."""
    best_score: float | None = None
    best_epoch: int = 0
    best_checkpoint: str = ""
    seconds: float = 0.0
    """Of training, over all starts."""
    stalled: float = 0.0
    """Of these, how many the updates waited for checkpoints."""
    skipped: int = 0
    """Updates that were not made, since loss or gradient were not finite."""
    skipped_in_a_row: int = 0
    """Of these, how many since an update was made."""
    left_out: list[list[int]] = field(default_factory=list)
    """[first, end) of the updates that are left out since the run was rolled back from them."""

    def judge(self, epoch: int, step: int, score: float, lower_is_better: bool) -> bool:
        """Takes in the score of an epoch; whether it is the best so far."""
        self.validated = epoch
        before = self.best_score
        if before is not None and not (score < before if lower_is_better else score > before):
            return False
        self.best_score, self.best_epoch, self.best_checkpoint = score, epoch, f"{step:09d}"
        return True

    def count_skipped(self, skipped: bool, updates: int) -> None:
        """Takes in a call of so many updates, the last of which may have been skipped."""
        self.skipped += skipped
        self.skipped_in_a_row = (self.skipped_in_a_row if updates == 1 else 0) + 1 if skipped else 0

    def out_of_patience(self, patience: int) -> bool:
        return self.validated - self.best_epoch >= patience

    def leaves_out(self, step: int) -> bool:
        """Whether the update after `step` ones is left out."""
        return any(first <= step < end for first, end in self.left_out)

    def outcome(self, per_epoch: int, total: int, examples: float) -> dict[str, Any]:
        """training.json; `examples` of an update, on average."""
        return {
            "best_checkpoint": self.best_checkpoint,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "best_step": int(self.best_checkpoint),
            "epochs": self.step // per_epoch,
            "examples_per_second": self.step * examples / self.seconds,
            "left_out": sum(end - first for first, end in self.left_out),
            "seconds": self.seconds,
            "seconds_waiting_for_checkpoints": self.stalled,
            "skipped": self.skipped,
            "steps": self.step,
            "stopped": "done" if self.step == total else "early",
        }
