"""What keeps one user's memories from another's."""
