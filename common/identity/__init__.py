"""Who calls: tokens and the keys that verify them, and the token of a service's own calls."""
