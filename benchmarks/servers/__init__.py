"""What Tally is compared with: the empty method, ORM and polling lock, DBOS, and pgbench."""
