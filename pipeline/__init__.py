"""radloop: from a PACS export to a trained model and back. Research use only - not for diagnosis."""

__version__ = "0.1.0"
