"""Tests of canal.data."""
