"""Wallets: charge, deduct, refund, and the ledger from which every balance can be rebuilt."""
