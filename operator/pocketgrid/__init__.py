"""PocketGrid: one dependable AI inference grid out of devices that are not dependable."""

__version__ = "0.1.0"
