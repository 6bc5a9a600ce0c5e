"""Tests of this repository alone; a project made from it has none of them."""
