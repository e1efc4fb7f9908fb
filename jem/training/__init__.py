"""Training: recipes, updates, the loop, divergence and checkpoints."""
