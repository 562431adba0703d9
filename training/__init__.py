"""Data out, offline: point-in-time training sets from the offline store."""
