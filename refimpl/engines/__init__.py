"""Connections to the engines that people run: one file each, with what it can do declared.

`interface.py` says what an engine must do and what it returns. An engine's own packages are imported when it is
started, in an environment of its own where its pins demand one.
"""
