"""Methods that only ask a network for predictions: they work on anything that can be called.

One engine serves all of them (`subject.py`): masks in, scores out, in batches inside a memory
budget. A method chooses the masks and makes an explanation of the scores.
"""
