"""What this process holds in RAM, now and at the most."""

import os
import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory that this process held so far (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_bytes() -> int:
    """What this process has in RAM now; where the system does not say, the most that it had."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory_bytes()
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
