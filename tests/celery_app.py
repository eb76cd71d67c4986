"""A host's Celery app: ``celery -A tests.celery_app worker --beat``."""

from __future__ import annotations

import os

from celery import Celery

from flask_llm_batches.engines.celery import register_tasks
from tests.hosts import from_environment

celery = Celery("host", broker=os.environ["TEST_REDIS_URL"])
celery.conf.task_default_queue = os.environ["HOST_QUEUE"]
register_tasks(celery, from_environment(), every=1.0)
