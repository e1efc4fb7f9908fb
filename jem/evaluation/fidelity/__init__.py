"""Fidelity: how good fresh samples and completions are, in the eyes of another network."""
