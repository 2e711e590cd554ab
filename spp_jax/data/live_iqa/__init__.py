"""`live_iqa`: LIVE Image Quality Assessment Database, release 2."""
