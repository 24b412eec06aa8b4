"""`python -m service.cli`: the `attune` command where the script is not installed."""

from service.cli import main

main()
