"""What `spillway new worker` writes: texts from upsert/ with a worker's names in them, and its part of template.yaml.

A test makes a worker in a copy of the checkout and runs there what `make test` would: tests/stack/test_new_worker.py.
"""
