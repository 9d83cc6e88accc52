"""What every room stands on: errors, files, digests, and messages for people."""

__version__ = "0.1.0"
