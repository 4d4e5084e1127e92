"""Claims about decisions: no database, no file, no task."""
