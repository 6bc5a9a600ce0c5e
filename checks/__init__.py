"""What looks at a deployment from outside: the doctor reads its files, smoke asks its address.

Nothing here is part of an image, and nothing that runs in production imports it.
"""
