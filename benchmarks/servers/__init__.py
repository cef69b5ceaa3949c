"""What Tally is compared with: the empty method, the reports' way, DBOS, and pgbench."""
