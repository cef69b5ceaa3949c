"""The balance service's SQL: set-based statements, each for a whole batch. Never commits."""
