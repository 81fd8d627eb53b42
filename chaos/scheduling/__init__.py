"""Runs on a schedule: the file, the times, what is decided, what is kept on disk, and the processes."""
