"""Engines that are not ours, driven by the same harness: what they tell is measured, what they cannot stays blank."""
