"""What a user runs, a module with a `main` for each command."""
