"""One file a command: its story from top to bottom."""
