"""What a source holds: every file found, read and accounted for."""
