"""Processes, descriptors and waiting: the only Python that sees the native code."""
