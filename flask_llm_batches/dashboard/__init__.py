"""Pages for people: what runs, what failed, and what it cost.

``static/htmx.min.js`` is htmx 2.0.11, as npm has it. Its licence, Zero-Clause BSD, is in ``htmx.LICENSE``.
"""
