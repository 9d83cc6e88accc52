"""Utilities of all packages: errors, atomic file writes, digests, and messages for users."""

__version__ = "0.1.0"
