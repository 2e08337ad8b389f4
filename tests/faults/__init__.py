"""The fault campaign: runs that are killed with ``kill -9`` and recovered with the normal commands."""
