"""What of this machine's processor decides between ways to compute the same."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def processor_info() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        name, colon, value = line.partition(":")
        if colon:
            entries[name.strip()] = value.strip()
    return entries


@functools.cache
def narrow_mkl() -> bool:
    """Whether MKL, by which PyTorch multiplies matrices in float32, leaves half of the processor's vectors unused: it takes AVX-512 on
    processors of Intel alone. Measured on 2 cores of an AMD EPYC with AVX-512 (PyTorch 2.13): 160 to 220 GF/s by MKL, 300 to 480 by
    oneDNN's products and convolutions."""
    info = processor_info()
    return platform.machine() == "x86_64" and info.get("vendor_id") == "AuthenticAMD" and "avx512f" in info.get("flags", "").split()
