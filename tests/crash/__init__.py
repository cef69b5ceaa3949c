"""The crash matrix: every failpoint of the services, in real processes. Long: `make test-crash`."""
