"""`python -m tally_cli` is the same as `tally`."""

from tally_cli import main

main()
