"""Infrastructure shared by the services. Knows no business noun and imports no service."""
