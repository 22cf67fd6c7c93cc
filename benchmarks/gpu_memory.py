"""Memory in use on the GPUs, by whomever, as the driver's own library tells it."""

from __future__ import annotations

from pathlib import Path

#: There where a GPU can be used.
HAS_GPU = Path("/dev/nvidiactl").exists()


class GpuMemory:
    """Asks NVML, which takes microseconds and no device time."""

    def __init__(self) -> None:
        self._devices = _devices()

    def used(self) -> int | None:
        """Bytes in use on all GPUs together; None where there is none."""
        if not self._devices:
            return None
        import pynvml

        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)


def _devices() -> list[object]:
    try:
        import pynvml

        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []  # no driver, or no GPU
