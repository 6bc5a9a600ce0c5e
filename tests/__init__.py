"""The tests: folders by what a test starts; conftest.py has the fixtures that start it."""
