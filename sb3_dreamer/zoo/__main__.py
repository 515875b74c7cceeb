"""``python -m sb3_dreamer.zoo train|enjoy|...``: rl_zoo3's commands with our algorithms among them, hook or no hook."""

import os
import runpy
import sys

from sb3_dreamer.ranks.distributed import rank
from sb3_dreamer.zoo import register

#: Name of the command -> module that runs it
COMMANDS = {name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video", "record_training", "benchmark")}
COMMANDS |= {name: f"rl_zoo3.{name}" for name in ("load_from_hub", "push_to_hub")}
COMMANDS |= {name: f"rl_zoo3.plots.{name}" for name in ("plot_train", "plot_from_file", "all_plots")}
COMMANDS["report"] = "sb3_dreamer.zoo.report"


def main() -> None:
    """Run the command named by the first argument with the arguments that follow it."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        known = "|".join(COMMANDS)
        sys.exit(f"usage: python -m sb3_dreamer.zoo {known} ...\nunknown command: {command!r}")
    register()
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # only rank 0 prints
    sys.argv[:2] = [f"python -m sb3_dreamer.zoo {command}"]
    runpy.run_module(COMMANDS[command], run_name="__main__")


if __name__ == "__main__":
    main()
