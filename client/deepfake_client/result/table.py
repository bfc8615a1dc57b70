"""Results as rows of a table, for CSV and for Parquet: one row for each input, also for one without a verdict."""

from __future__ import annotations

from typing import Any

from deepfake_client.result.outcome import Outcome

COLUMNS = (
    "source", "label", "fake_probability", "interval_low", "interval_high", "threshold", "reason", "detail",
    "deciding_track", "agreeing_share", "score_variance", "longest_run", "tracks", "frames", "frames_saved",
    "frames_dropped", "corrupt_packets", "unread_s", "total_s", "model", "model_version", "checkpoint_sha256",
    "error_type", "error",
)  # fmt: skip
"""One row per input; `docs/client.md` says what they hold."""


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """Return the cells of `COLUMNS` that hold something for an outcome."""
    verdict, error = outcome.verdict, outcome.error
    if verdict is None:
        return {"source": outcome.source, "error_type": type(error).__name__, "error": str(error)}
    deciding = verdict.deciding
    row = {
        "source": verdict.source,
        "label": verdict.label.value,
        "fake_probability": verdict.fake_probability,
        "threshold": verdict.threshold,
        "reason": None if verdict.reason is None else verdict.reason.value,
        "detail": verdict.detail,
        "deciding_track": verdict.deciding_track,
        "tracks": len(verdict.tracks),
        "frames": len(verdict.frames),
        "frames_saved": verdict.frames_saved,
        "frames_dropped": verdict.frames_dropped,
        "corrupt_packets": verdict.corrupt_packets,
        "unread_s": round(verdict.unread_s, 4),
        "total_s": round(verdict.timing_s.total, 4),
        "model": verdict.model.name,
        "model_version": verdict.model.version,
        "checkpoint_sha256": verdict.model.checkpoint_sha256,
    }
    if verdict.interval is not None:
        row |= {"interval_low": verdict.interval.low, "interval_high": verdict.interval.high}
    return row | ({} if deciding is None else deciding.consistency.to_dict())
