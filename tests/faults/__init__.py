"""Kills, races, full disks, hostile words: the registry stays whole."""
