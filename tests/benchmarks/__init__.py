"""What is measured: ``make bench`` prints the tables; RESULTS.md keeps them, with machine and date."""
