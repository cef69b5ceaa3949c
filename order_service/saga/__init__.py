"""The sagas that pay and cancel orders: the plans, the journal and the runner."""
