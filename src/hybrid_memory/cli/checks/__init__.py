"""What `doctor` looks at, one folder of the world a file."""
