"""Faults at random times: kills of each process (`make test-kills`) and all kinds of faults
(`make test-chaos`)."""
