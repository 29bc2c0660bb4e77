"""Numbers with intervals: arrays in, numbers out."""
