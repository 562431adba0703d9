"""Tally beside other systems: programs that do the same work on both sides in one run, and say how both did."""
