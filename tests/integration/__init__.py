"""Real processes, real files, real servers."""
