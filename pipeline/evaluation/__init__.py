"""What is evaluated: splits, units, folds, stresses."""
