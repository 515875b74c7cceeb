"""How fast an update, an acting step, the replay buffer and the whole loop are: ``python -m benchmarks.speed --help``."""
