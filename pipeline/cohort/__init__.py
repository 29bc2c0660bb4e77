"""Who is in: cases, labels, patients, and how they are divided."""
