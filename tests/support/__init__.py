"""What the tests share: servers, containers, clients and data."""
