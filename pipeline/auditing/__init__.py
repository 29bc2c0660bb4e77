"""What in a dataset tells the label without the anatomy."""
