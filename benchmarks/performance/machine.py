"""The machine and the package versions of a run."""

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    *("tensorflow", "keras", "numpy", "pillow"),
    *("adversarial-robustness-toolbox", "ai-edge-litert", "litert-quantizer"),
)


def machine():
    """Processor, cores, memory and system."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions():
    """Versions of Python and of the packages measured."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _memory_gb():
    kilobytes = _field("/proc/meminfo", "MemTotal").split()[:1]
    return round(int(kilobytes[0]) / 1e6, 1) if kilobytes else None


def _field(file, name):
    """The value of a field in a file of /proc; empty on other systems."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")
