"""The commands of `jem`, a module each: its arguments as a dataclass, and `run(argv)`."""
