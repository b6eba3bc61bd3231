"""The machine that figures are of, as its kernel tells it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Cores, memory, processor, kernel and Python; and the GPU with torch, where there is one."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **_gpu(),
    }


def commit() -> str:
    """What is measured, as git names it; empty where that cannot be told."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return ""
    return told.stdout.strip()


def load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu": f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"}


def _processor() -> str:
    """The first core's model, where the kernel has a name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
