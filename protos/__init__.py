"""The gRPC contract of Tally, and the program that turns it into Python stubs."""
