"""radloop: from a PACS export to a trained model and back. Research use only - not for diagnosis."""

__version__ = "0.1.0"

RESEARCH_ONLY = "Research use only - not for diagnosis"
"""Said on everything that radloop writes for people."""
