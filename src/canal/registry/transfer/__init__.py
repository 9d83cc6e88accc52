"""Export and import of a version in one ZIP file, the parcel, with the proof of its ancestry."""
