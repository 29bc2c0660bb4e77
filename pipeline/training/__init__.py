"""From prepared images to a fitted network."""
