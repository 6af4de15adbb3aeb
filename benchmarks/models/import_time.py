"""Time of ``import wavevit`` over ``import timm``, each in fresh processes that take turns.

python benchmarks/models/import_time.py
"""

import functools
import subprocess
import sys

from wavevit.profiling.timing import Summary, paired_ratio, time_in_turns

ROUNDS = 9


def main() -> None:
    calls = {
        name: functools.partial(
            subprocess.run, [sys.executable, "-c", f"import {name}"], check=True
        )
        for name in ("timm", "wavevit")
    }
    seconds = time_in_turns(calls, ROUNDS, "cpu", warm_up=0)
    medians = {name: Summary.of(times).median for name, times in seconds.items()}
    print({**medians, "ratio": paired_ratio(seconds["wavevit"], seconds["timm"])})


if __name__ == "__main__":
    main()
