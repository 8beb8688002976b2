"""`python -m diffcli`: what torchrun starts."""

from diffcli.cli import main

main()
