"""What every benchmark says about where its numbers come from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console

_NARROWEST = 130
_PACKAGES = ("attune", "torch", "transformers", "numpy", "pillow")


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages that decide the numbers; None where not installed."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, torch's threads, and the GPU's name where there is one."""
    import torch

    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def make_console() -> Console:
    """The terminal; a pipe or a file gets lines wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, _NARROWEST))
