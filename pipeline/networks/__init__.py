"""Networks, their geometry, and where their weights come from."""
