"""Gunicorn as this project runs it: `python -m serving.gunicorn MODULE`, hooks, worker class.

gunicorn.conf.py has the settings, docs/patches.md what is changed in Gunicorn itself and why.
"""
