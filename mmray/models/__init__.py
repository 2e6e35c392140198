"""Torch only: networks, where they run and how their outputs become one vector per sample."""
