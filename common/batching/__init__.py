"""Lanes: concurrent commands on one kind of aggregate, decided together in one transaction.

Commands queue; one batch is in flight; while it commits, the next one fills. An idle lane adds no
delay: a batch of one is the plain case. So everyone who would have queued for a row shares the cost
of one transaction, and the share grows with the contention.

    submit ─► admit ─► Redis lock ─► BEGIN ─► load, replay, decide, save ─► COMMIT ─► reply

``lane`` has the commands and what follows from each outcome, ``queues`` chooses the next batch,
``batch`` carries it to its commit, ``bulk`` lets the commands of a bulk call enter, ``key_waits``
keeps commands that wait for a busy Redis lock and ``lock_wait_queue`` those that wait for a locked
row, ``decider`` is the skeleton of the four inner steps, and ``loader`` does for single reads what
a lane does for writes.
"""
