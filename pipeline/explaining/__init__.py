"""Whether a model's heatmaps can be trusted: tests of them on images of its own data."""
