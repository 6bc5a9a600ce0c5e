"""The FastAPI application, in main.py. What serves it is in serving/uvicorn/."""
