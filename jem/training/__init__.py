"""Training: recipes, steps, the loop, divergence and checkpoints."""
