"""Parts of de-identification as a stage: the plan, what became of each file, the journal, the tables."""
