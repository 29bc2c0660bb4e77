"""The commands by group: what each takes on the command line, and the stage that it calls."""
