"""Tests of canal; the folders mirror src/canal, and each is a package so that file names may repeat."""
