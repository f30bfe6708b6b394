"""Scratch memory of split products: partial sums, and tickets that count arrivals.

Programs that share a list write float32 partial sums and take a ticket; the one that
arrives last adds all of them up and sets its ticket back to zero. So nothing is cleared
between launches, and a launch must not begin before the last one on the same workspace
has ended. Launches on one stream keep that by themselves. **Two streams that run at the
same time need a workspace each**: they would count each other's tickets. An engine uses
one stream at a time, so one workspace a device serves all of its layers.

A CUDA graph holds the addresses of the buffers it was captured with. Buffers are
therefore never given back: growing keeps the old ones, and doubles, so that all of them
together are at most twice the largest.
"""

from __future__ import annotations

import threading

import torch

_FLOATS = 4 << 20
_TICKETS = 64 << 10
# 1 GiB of partial sums: beyond it a split costs more than it gains.
_MOST_FLOATS = 256 << 20
_MOST_TICKETS = 16 << 20


class Workspace:
    """Partial sums and tickets of one device and one stream at a time.

    Args:
        device: where the products run.
        floats: partial sums to begin with.
        tickets: tickets to begin with.

    Raises:
        RuntimeError: if a CUDA graph is being captured.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        floats: int = _FLOATS,
        tickets: int = _TICKETS,
    ) -> None:
        _refuse_capture(device, "is made")
        self.device = device
        self._kept: list[torch.Tensor] = []
        self.partials = torch.empty(floats, dtype=torch.float32, device=device)
        self.tickets = torch.zeros(tickets, dtype=torch.int32, device=device)
        _wait(device)

    @staticmethod
    def for_(device: torch.device) -> Workspace:
        """Return the workspace that all products on a device share.

        Args:
            device: where the products run; without an index, the current one.

        Raises:
            RuntimeError: if there is none yet and a CUDA graph is being captured.
        """
        key = str(device)
        if key == "cuda":
            key = f"cuda:{torch.cuda.current_device()}"
        found = _SHARED.get(key)
        if found is None:
            with _LOCK:
                found = _SHARED.get(key) or Workspace(torch.device(key))
                _SHARED[key] = found
        return found

    def reserve(self, floats: int, tickets: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return buffers of at least these sizes; partial sums are not initialised.

        Args:
            floats: partial sums of a launch.
            tickets: programs of a launch without splits.

        Raises:
            ValueError: if the sizes are beyond what a workspace may hold.
            RuntimeError: if it would have to grow while a CUDA graph is captured.
        """
        if floats > self.partials.numel() or tickets > self.tickets.numel():
            self._grow(floats, tickets)
        return self.partials, self.tickets

    def _grow(self, floats: int, tickets: int) -> None:
        if floats > _MOST_FLOATS or tickets > _MOST_TICKETS:
            raise ValueError(
                f"Workspace: a product asks for {floats} partial sums and {tickets} "
                f"tickets. Expected at most {_MOST_FLOATS} and {_MOST_TICKETS}: use "
                "fewer splits (GatherTiles.splits)."
            )
        _refuse_capture(self.device, f"grows to {floats} sums and {tickets} tickets")
        with _LOCK:
            if floats > self.partials.numel():
                size = min(_MOST_FLOATS, max(floats, 2 * self.partials.numel()))
                self._kept.append(self.partials)
                self.partials = torch.empty(
                    size, dtype=torch.float32, device=self.device
                )
            if tickets > self.tickets.numel():
                size = min(_MOST_TICKETS, max(tickets, 2 * self.tickets.numel()))
                self._kept.append(self.tickets)
                self.tickets = torch.zeros(size, dtype=torch.int32, device=self.device)
            _wait(self.device)


_LOCK = threading.Lock()
_SHARED: dict[str, Workspace] = {}


def _refuse_capture(device: torch.device, what: str) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"Workspace: it {what} while a CUDA graph is being captured. Expected it "
            "before: run the product once outside the capture."
        )


def _wait(device: torch.device) -> None:
    """The next launch may be on another stream than the zeros it counts on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
