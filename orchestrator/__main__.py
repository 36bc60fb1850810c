"""`python -m orchestrator` is `convoy`: what a job that is submitted to a cluster runs."""

from orchestrator.cli import main

main()
