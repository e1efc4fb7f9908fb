"""Run folders: their files, checkpoints, and the trained model in them."""
