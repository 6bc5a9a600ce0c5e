"""What runs between the application and the engine: settings, sizing, probes, trusted proxies, logs.

Nothing but the standard library and the server that a module is for, so that the folder can be
copied into any project as it is. Nothing here imports an application.
"""
