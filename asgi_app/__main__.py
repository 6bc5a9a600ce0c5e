"""`python -m asgi_app`: see launcher.py, which the worker processes can import."""

from asgi_app.launcher import main

main()
