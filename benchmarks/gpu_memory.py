"""Memory in use on the GPUs, by whomever, as the driver's own library tells it."""

from __future__ import annotations

from pathlib import Path

#: There where a GPU can be used.
HAS_GPU = Path("/dev/nvidiactl").exists()


class GpuMemory:
    """Asks NVML, which takes microseconds and no device time."""

    def __init__(self) -> None:
        self._devices = _devices()

    def used(self) -> tuple[int, ...]:
        """Bytes in use on every GPU of the machine, in the order of NVML; none where there is no
        GPU."""
        if not self._devices:
            return ()
        import pynvml

        return tuple(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)


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
