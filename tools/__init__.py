"""Command-line tools: each parses, calls one library function, prints."""
