"""What both server families need: settings, worker sizing, health, trusted peers, logs.

Standard library only, so that the folder can be copied as it is into any project.
"""
