"""The example: a small shop with batches (``app.py``), and a tour of it (``tour.py``)."""
