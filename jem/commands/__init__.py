"""The commands of `jem`: the arguments of each as a dataclass, and a function of its name."""
