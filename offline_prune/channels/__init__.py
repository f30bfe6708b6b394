"""Channel-level sparsity: how a linear's budget is split over its output rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.registry import Registry

if TYPE_CHECKING:
    from offline_prune.channels.ogas import Ogas

channels: Registry[type[Ogas]] = Registry("channel method")
channels.add("ogas", "offline_prune.channels.ogas:Ogas")
