"""The payment gateway, Toss Payments: its calls and their outcomes."""
