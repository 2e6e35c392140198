"""Bytes to arrays and strings: pure, thread-safe functions that raise `BadSample`."""
