"""The command line: options, exit statuses, and what is said to a person."""
