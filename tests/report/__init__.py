"""Tests of canal.report."""
