"""Training: recipe, loop, run directory."""
