"""The rules: pure, one event in, instructions out. No lock, no clock, no I/O."""
