"""All modes of one layer at one number of tokens: made, checked, tuned, timed."""

from __future__ import annotations

import dataclasses
import statistics
import traceback
from typing import Any

import rows
import torch
from gpu_check import fastest
from gpu_modes import MODES, STOCK, Mode, Unavailable, inputs, modes_of
from gpu_timing import Captured, Copy, capture, in_turns, quick
from gpu_weights import Weights

# Without timing, so many tiles of a mode are checked.
CHECKED_TILES = 2
RIGHT, WRONG, FAILED, SKIPPED = "right", "wrong", "failed", "skipped"


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """A mode that can be timed: with its tiles, and what a row says about it."""

    mode: Mode
    tiles: Any
    about: dict[str, Any]


class Step:
    """One layer at one number of tokens.

    Args:
        weights: of the layer.
        tokens: T.
        asked: names of modes; None for all.
        timed: False to check results only.
        most_tiles: tiles to try; None for all.
    """

    def __init__(
        self,
        weights: Weights,
        tokens: int,
        asked: list[str] | None,
        *,
        timed: bool,
        most_tiles: int | None,
    ) -> None:
        self.weights, self.timed = weights, timed
        self.most_tiles = most_tiles if timed else CHECKED_TILES
        self.xs = inputs(tokens, weights)
        self.names = modes_of(tokens, asked)
        self.ready: dict[str, Ready] = {}
        self.rows: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Make, check and tune every mode; a row says why one cannot be timed."""
        for name in self.names:
            try:
                found = self._prepared(name)
            except Unavailable as reason:
                self._leave_out(name, SKIPPED, str(reason))
            except Exception as error:
                # One kernel that does not compile must not keep others from running.
                self._failed(name, error)
            else:
                if found.about["status"] == RIGHT or name == STOCK:
                    self.ready[name] = found
                else:
                    self._leave_out(name, WRONG, found.about["reason"])

    def _prepared(self, name: str) -> Ready:
        mode = MODES[name](self.weights, self.xs)
        copies = self.weights.copies

        def seconds(tiles: Any) -> float:
            if not self.timed:
                return 0.0  # the first tiles that are right will do
            return quick(lambda number: mode.run(number, tiles), copies)

        tiles, verdict = fastest(
            mode, len(self.xs), copies, seconds, most=self.most_tiles
        )
        about = {
            "status": WRONG if verdict.wrong else RIGHT,
            "reason": verdict.wrong,
            "error": verdict.error,
            "repeatable": verdict.repeatable,
            "tiles": as_dict(tiles),
            "tiles_tried": len(mode.tiles[: self.most_tiles]),
        }
        return Ready(mode, tiles, about)

    def _captured(self, one: Ready) -> Captured:
        return capture(lambda i: one.mode.run(i, one.tiles), self.weights.copies)

    def _failed(self, name: str, error: Exception) -> None:
        """Note an error that is being handled; stock's ends the run.

        Raises:
            Exception: the error, if there is nothing left to compare with.
        """
        if name == STOCK:
            raise error
        traceback.print_exc()
        text = str(error).partition("\n")[0][:200]
        self._leave_out(name, FAILED, f"{type(error).__name__}: {text}")

    def _leave_out(self, name: str, status: str, reason: str | None) -> None:
        self.rows.append({"mode": name, "status": status, "reason": reason})

    def measure(self, copy: Copy, rounds: int) -> None:
        """Time all that is right, in turns, and make rows."""
        captured = {}
        for name, one in list(self.ready.items()):
            try:
                captured[name] = self._captured(one)
            except Exception as error:
                self._failed(name, error)
                del self.ready[name]
        samples, bandwidths = in_turns(captured, copy, rounds)
        for name, one in self.ready.items():
            timed = result(
                samples[name], samples[STOCK], bandwidths, one.mode.bytes_read
            )
            self.rows.append({"mode": name} | one.about | timed)

    def checked(self) -> None:
        """Make rows of what is right, without times."""
        for name, one in self.ready.items():
            self.rows.append({"mode": name} | one.about)


def as_dict(tiles: Any) -> dict[str, int] | None:
    """Return tiles as a row can hold them."""
    if tiles is None:
        return None
    if dataclasses.is_dataclass(tiles) and not isinstance(tiles, type):
        return dataclasses.asdict(tiles)
    return dict(tiles._asdict())


def result(
    seconds: list[float],
    stock: list[float],
    bandwidths: list[float],
    bytes_read: int,
) -> dict[str, Any]:
    """Return what a row says about one mode's time.

    Args:
        seconds: per call, one a round.
        stock: the same of cuBLAS.
        bandwidths: of the copy, bytes a second, one a round.
        bytes_read: of the weight, by a call.
    """
    ratios = [s / t for s, t in zip(stock, seconds, strict=True)]
    shares = [bytes_read / t / b for t, b in zip(seconds, bandwidths, strict=True)]
    middle = statistics.median(seconds)
    return {
        "speed_vs_cublas_p20": rows.percentile(ratios, 20),
        "speed_vs_cublas_p50": rows.percentile(ratios, 50),
        "speed_vs_cublas_p80": rows.percentile(ratios, 80),
        "microseconds_p50": round(middle * 1e6, 3),
        "bytes_read": bytes_read,
        "gb_per_s": round(bytes_read / middle / 1e9, 1),
        "copy_gb_per_s": round(statistics.median(bandwidths) / 1e9, 1),
        "copy_fraction": round(statistics.median(shares), 4),
    }


def cache_bytes(device: torch.device) -> int:
    """Return the size of the L2 cache; 0 without a GPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)
