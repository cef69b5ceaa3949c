"""`make watch`: what a running stack does, drawn in a terminal from its replicas' metrics pages.

pages.py      reads the pages
history.py    the last minute of readings, and the panels' values in it
frame.py      one picture: the boxes and where they are
boxes.py      what is in each box
figures.py    numbers and times as short texts, and sparklines
"""
