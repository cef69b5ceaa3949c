"""TLS on every port and to every server, and mutual TLS among services."""
