"""`python -m diffcli`: what torchrun starts."""

from diffcli.cli.app import main

main()
