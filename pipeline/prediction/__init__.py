"""From a model and images to probabilities, heatmaps and objects."""
