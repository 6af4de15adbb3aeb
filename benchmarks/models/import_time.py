"""Time of ``import wavevit`` over ``import timm``, each in fresh processes that take turns.

python benchmarks/models/import_time.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 9


def main() -> None:
    seconds: dict[str, list[float]] = {"timm": [], "wavevit": []}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            times.append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print({**medians, "ratio": medians["wavevit"] / medians["timm"]})


if __name__ == "__main__":
    main()
