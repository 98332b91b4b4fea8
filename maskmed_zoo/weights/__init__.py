"""Weights from files: read without running code, renamed, fitted, reported; cards, downloads and the hub."""
